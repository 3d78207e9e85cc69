"""Draws the configurations that are recorded, and the loads that several incidents share.

Rates and pools follow from what is drawn: how many requests are to run at once, how long a step
then takes, how full the pool then is. Held-out configurations take every number from bands that the
others never take one from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any, Final

from scripts.incidents.world import Ask, Client, Setup, World

HELD_OUT_EVERY_S: Final = (1.0, 5.0, 15.0)
FITTED_EVERY_S: Final = (2.0, 4.0, 10.0)
"""Intervals between scrapes."""


class Dice:
    """Draws a configuration."""

    def __init__(self, name: str, seed: int, *, held_out: bool) -> None:
        self._random = random.Random(f"{name} {seed} {held_out}")
        self._bands = (1, 4) if held_out else (0, 2, 3, 5)
        self.held_out = held_out
        self.drawn: dict[str, Any] = {}
        every = HELD_OUT_EVERY_S if held_out else FITTED_EVERY_S
        self.every = every[seed // 3 % 3]
        self.duration = {1.0: 75.0, 2.0: 75.0, 4.0: 120.0, 5.0: 120.0, 10.0: 210.0, 15.0: 240.0}[
            self.every
        ]
        self.base = self.real("base_ms", 8, 40) / 1e3
        self.prompt = self.real("prompt_us", 20, 120) / 1e6
        self.kv = self.real("kv_us", 0.02, 0.3) / 1e6
        self.request = self.real("request_us", 50, 300) / 1e6

    def real(self, name: str, low: float, high: float) -> float:
        """A number, evenly by its logarithm, in the bands of its kind."""
        at = (self._random.choice(self._bands) + self._random.random()) / 6
        self.drawn[name] = round(low * math.exp(at * math.log(high / low)), 6)
        return float(self.drawn[name])

    def whole(self, name: str, low: int, high: int) -> int:
        """A whole number, likewise."""
        self.drawn[name] = max(low, min(high, round(self.real(name, low, high))))
        return int(self.drawn[name])

    def of(self, name: str, *values: Any) -> Any:
        """One of a few."""
        self.drawn[name] = self._random.choice(values)
        return self.drawn[name]

    def step_s(self, running: float, length: float, output: float, prompt: float) -> float:
        """A step's duration while so many requests run, prompts being computed on the way."""
        share = running / output * prompt * self.prompt
        return self.base + running * (self.request + length * self.kv) + share

    def rate(self, running: float, length: float, output: float, prompt: float) -> float:
        """Requests a second that keep so many running."""
        return running / (output * self.step_s(running, length, output, prompt))

    @property
    def pace(self) -> dict[str, int]:
        """Picoseconds, as the engine's clock reads them."""
        parts = {"base": self.base, "prompt": self.prompt, "kv": self.kv, "request": self.request}
        return {name: round(value * 1e12) for name, value in parts.items()}


Prompt = Callable[[World], dict[str, Any]]
"""Draws a prompt, and its salt."""


def prompts(dice: Dice, kind: str, shared: int, unique: int) -> Prompt:
    """Prompts with a system prompt that is shared: well, or in one of the wrong ways."""
    number = dice.whole("system_prompts", 1, 3)
    varying = dice.whole("varying_tokens", 8, 40)

    def made(world: World) -> dict[str, Any]:
        system = world.words(shared, f"system {world.rng.randrange(number)}")
        own = world.words(unique)
        if kind == "varying":
            return {"prompt": world.words(varying) + system + own}
        if kind == "salted":
            return {"prompt": system + own, "salt": f"user-{world.rng.randrange(10**6)}"}
        if kind == "unique":
            return {"prompt": world.words(shared) + own}
        return {"prompt": system + own}

    return made


def setup(
    dice: Dice,
    load: Callable[[World], Client],
    what: str,
    *,
    pool: int,
    block: int | None = None,
    seqs: int = 64,
    budget: int = 2048,
    more: tuple[str, ...] = (),
    longest: int = 2048,
    **rest: Any,
) -> Setup:
    """What is recorded; `pool` in tokens."""
    block = block or dice.of("block_size", 16, 32)
    blocks = -(-pool // block)
    longest = longest if rest.get("unchecked") else min(longest, blocks * block)
    arguments = ["--block-size", block, "--num-gpu-blocks-override", blocks + 1]
    arguments += ["--max-num-seqs", seqs, "--max-num-batched-tokens", max(budget, seqs)]
    arguments += ["--max-model-len", longest, *more]
    return Setup(
        name="",
        modes=(),
        what=what,
        arguments=[str(each) for each in arguments],
        pace=dice.pace,
        duration=dice.duration,
        every=dice.every,
        load=load,
        max_model_len=longest,
        drawn=dice.drawn,
        **rest,
    )


def steady(
    dice: Dice,
    *,
    running: float,
    fill: float,
    kind: str = "shared",
    cached: bool = True,
    **rest: Any,
) -> Setup:
    """Poisson requests that keep so many running, in a pool that they fill so far."""
    shared, unique = dice.whole("shared", 192, 640), dice.whole("unique", 32, 160)
    output = dice.whole("output", 24, 96)
    fresh = unique if kind == "shared" and cached else shared + unique
    rate = dice.rate(running, shared + unique + output / 2, output, fresh)
    pool = max(2048, round(running * (fresh + output) / fill) + 3 * shared)
    made = prompts(dice, kind, shared, unique)

    def load(world: World) -> Client:
        yield from world.poisson(rate, lambda: Ask(output=output, **made(world)))

    what = f"Poisson {rate:.2f}/s, {shared} {kind} + {unique} tokens, {output} out"
    return setup(dice, load, what, pool=pool, **rest)


def turns(dice: Dice, sessions: int, think: float, pool: int, what: str, **rest: Any) -> Setup:
    first, more = dice.whole("first", 128, 320), dice.whole("more", 64, 160)
    output, number = dice.whole("output", 24, 64), dice.whole("turns", 5, 8)

    def load(world: World) -> Client:
        def session(name: str) -> Client:
            yield world.rng.random() * think
            while world.open:
                told = world.words(128, "system") + world.words(first)
                for _ in range(number):
                    if not world.open:
                        return
                    yield Ask(prompt=told, output=output, tenant=name)
                    told = told + world.words(more)
                    yield world.rng.expovariate(1 / think)

        for at in range(sessions):
            world.start(session(f"s{at}"))
        yield 0

    what = f"{sessions} sessions of {number} turns, {think:.1f} s between turns: {what}"
    return setup(dice, load, what, pool=pool, longest=4096, **rest)
