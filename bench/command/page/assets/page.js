"use strict";
// Copies commands, steps through films, zooms into maps. Without it everything is there to be read.
for (const button of document.querySelectorAll(".copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    const code = button.parentElement.querySelector("code");
    try {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "Copied";
    } catch {
      getSelection().selectAllChildren(code); // A page from a disk may not: then it is chosen.
      button.textContent = "Press Ctrl+C";
    }
  });
}
for (const film of document.querySelectorAll(".film")) {
  const frames = [...film.querySelectorAll(".frame")];
  const output = film.querySelector("output");
  let at = Math.max(0, frames.findIndex((each) => each.classList.contains("wrong")));
  const go = (to) => {
    at = Math.min(frames.length - 1, Math.max(0, to));
    frames.forEach((each, number) => (each.hidden = number !== at));
    output.textContent = `${at + 1} of ${frames.length}`;
  };
  const moves = { first: () => 0, back: () => at - 1, forward: () => at + 1, last: () => frames.length - 1 };
  for (const [name, to] of Object.entries(moves)) film.querySelector("." + name).addEventListener("click", () => go(to()));
  film.addEventListener("keydown", (event) => {
    const name = { Home: "first", ArrowLeft: "back", ArrowRight: "forward", End: "last" }[event.key];
    if (name) { event.preventDefault(); go(moves[name]()); }
  });
  if (frames.length > 1) film.querySelector(".controls").hidden = false;
  go(at);
}
