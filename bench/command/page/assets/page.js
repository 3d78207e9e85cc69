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
const bytes = (text) => Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
async function unpacked(text) {
  const stream = new Blob([bytes(text)]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}
async function zoomable(map) {
  const data = JSON.parse(map.querySelector("script").textContent);
  const rows = await unpacked(data.runs);
  const columns = data.steps.length;
  if (!rows.length || !columns) return;
  const still = map.querySelector(".still");
  const canvas = document.createElement("canvas");
  const output = document.createElement("output");
  output.setAttribute("aria-live", "polite");
  canvas.tabIndex = 0;
  canvas.setAttribute("role", "application");
  canvas.setAttribute("aria-label", map.querySelector("figcaption").textContent +
    " Arrow keys move the mark, plus and minus zoom, Escape shows all.");
  const help = "Point, or move the mark with the arrow keys; wheel, + and - zoom, Escape shows all.";
  output.textContent = help;
  still.replaceWith(canvas, output);
  const image = new OffscreenCanvas(columns, rows.length);
  const paint = image.getContext("2d");
  rows.forEach((runs, row) => runs.forEach(([from, kind, owner], number) => {
    const to = number + 1 < runs.length ? runs[number + 1][0] : columns;
    paint.fillStyle = kind === data.token && owner >= 0 ? data.shades[owner % data.shades.length] : data.kinds[kind]?.[0] ?? "#888888";
    paint.fillRect(from, rows.length - 1 - row, to - from, 1);
  }));
  let view = { x: 0, y: 0, w: columns, h: rows.length };
  let mark = { x: 0, y: 0 };
  const clamp = (value, low, high) => Math.min(Math.max(value, low), Math.max(low, high));
  const draw = () => {
    const scale = devicePixelRatio || 1;
    canvas.width = canvas.clientWidth * scale;
    canvas.height = canvas.clientHeight * scale;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(image, view.x, view.y, view.w, view.h, 0, 0, canvas.width, canvas.height);
    const cell = { w: canvas.width / view.w, h: canvas.height / view.h };
    context.strokeStyle = "#000000"; context.lineWidth = 3 * scale;
    const box = [(mark.x - view.x) * cell.w, (mark.y - view.y) * cell.h, Math.max(cell.w, 4), Math.max(cell.h, 4)];
    context.strokeRect(...box);
    context.strokeStyle = "#ffffff"; context.lineWidth = scale;
    context.strokeRect(...box);
  };
  const say = () => {
    const row = rows.length - 1 - mark.y, runs = rows[row];
    const at = runs.findLastIndex(([from]) => from <= mark.x);
    const words = ([, kind, owner]) => (data.kinds[kind]?.[1] ?? "beyond the pool") + (owner >= 0 ? `, request ${owner}` : "");
    const until = (number) => (number + 1 < runs.length ? data.steps[runs[number + 1][0]] : data.steps[columns - 1]);
    const slots = `slots ${row * data.slotsPerRow} to ${Math.min(data.slots, (row + 1) * data.slotsPerRow) - 1}`;
    const history = [-2, -1, 1, 2].map((by) => at + by).filter((number) => runs[number])
      .map((number) => `${number < at ? "before" : "after"}: ${words(runs[number])} (steps ${data.steps[runs[number][0]]} to ${until(number)})`);
    output.textContent = `Step ${data.steps[mark.x]}, ${slots}: ${words(runs[at])}, steps ${data.steps[runs[at][0]]} to ${until(at)}. ${history.join("; ")}`;
  };
  const zoom = (by) => {
    const w = clamp(view.w * by, 8, columns), h = clamp(view.h * by, 8, rows.length);
    view = {
      x: clamp(mark.x - ((mark.x - view.x) * w) / view.w, 0, columns - w),
      y: clamp(mark.y - ((mark.y - view.y) * h) / view.h, 0, rows.length - h), w, h,
    };
    draw();
  };
  const move = (x, y) => {
    mark = { x: clamp(Math.floor(x), 0, columns - 1), y: clamp(Math.floor(y), 0, rows.length - 1) };
    view.x = clamp(view.x, Math.max(0, mark.x + 1 - view.w), mark.x);
    view.y = clamp(view.y, Math.max(0, mark.y + 1 - view.h), mark.y);
    draw(); say();
  };
  canvas.addEventListener("pointermove", (event) => {
    const place = canvas.getBoundingClientRect();
    move(view.x + ((event.clientX - place.left) / place.width) * view.w, view.y + ((event.clientY - place.top) / place.height) * view.h);
  });
  canvas.addEventListener("wheel", (event) => { event.preventDefault(); zoom(event.deltaY > 0 ? 1.25 : 0.8); }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const by = event.shiftKey ? 20 : 1;
    const keys = {
      ArrowLeft: () => move(mark.x - by, mark.y), ArrowRight: () => move(mark.x + by, mark.y),
      ArrowUp: () => move(mark.x, mark.y - by), ArrowDown: () => move(mark.x, mark.y + by),
      "+": () => zoom(0.8), "=": () => zoom(0.8), "-": () => zoom(1.25),
      Escape: () => { view = { x: 0, y: 0, w: columns, h: rows.length }; draw(); },
    };
    if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
  });
  addEventListener("resize", draw);
  draw();
}
if (typeof DecompressionStream === "function") for (const map of document.querySelectorAll(".map")) zoomable(map);
