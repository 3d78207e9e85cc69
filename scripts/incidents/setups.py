"""The incidents that are recorded: what is wrong in each, over drawn pools, rates and lengths.

Each function draws a configuration and says how it is loaded. Rates and pools follow from what is
drawn: how many requests are to run at once, how long a step then takes, how full the pool then is.
Held-out configurations take every number from bands that the others never take one from.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from scripts.incidents.world import Ask, Client, Setup, World, one

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
    longest = min(longest, blocks * block)
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


# -- healthy ---------------------------------------------------------------------------------------


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


def healthy_low(dice: Dice) -> Setup:
    return steady(dice, running=dice.real("running", 0.5, 3), fill=0.1)


def healthy_high_load(dice: Dice) -> Setup:
    return steady(dice, running=dice.real("running", 10, 22), fill=0.55)


def healthy_unique(dice: Dice) -> Setup:
    return steady(dice, running=dice.real("running", 2, 8), fill=0.25, kind="unique")


def healthy_full_pool(dice: Dice) -> Setup:
    number, prompt = dice.whole("clients", 8, 20), dice.whole("prompt", 256, 768)
    output = dice.whole("output", 64, 160)

    def load(world: World) -> Client:
        world.closed(number, lambda: Ask(prompt=world.words(prompt), output=output))
        yield 0

    pool = max(1024, round(number * (prompt + output + 32) / dice.real("fill", 0.9, 0.97)))
    return setup(dice, load, f"{number} clients, {prompt} + {output}: full, and enough", pool=pool)


def _turns(dice: Dice, sessions: int, think: float, pool: int, what: str, **rest: Any) -> Setup:
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


def healthy_multi_turn(dice: Dice) -> Setup:
    sessions = dice.whole("sessions", 6, 16)
    think = dice.real("think", 1.5, 4)
    return _turns(dice, sessions, think, 2600 * sessions, "all stay in the pool")


def healthy_ranks(dice: Dice) -> Setup:
    return steady(dice, running=dice.real("running", 6, 16), fill=0.3, ranks=dice.of("ranks", 2, 3))


def healthy_speculative(dice: Dice) -> Setup:
    tokens, right = dice.whole("drafted", 2, 5), dice.real("right", 0.4, 0.9)
    rolls = random.Random(tokens)

    def accepts(drafted: int) -> int:
        number = 0
        while number < drafted and rolls.random() < right:
            number += 1
        return number

    config = f'{{"method":"ngram","num_speculative_tokens":{tokens},"prompt_lookup_max":4}}'
    more = ("--speculative-config", config)
    running = dice.real("running", 3, 10)
    return steady(dice, running=running, fill=0.25, more=more, accepts=accepts)


# -- memory, queue and engine ----------------------------------------------------------------------


def pool_too_small(dice: Dice, kind: str = "unique") -> Setup:
    number, output = dice.whole("clients", 12, 30), dice.whole("output", 160, 420)
    short, own = dice.whole("prompt", 48, 160), 32
    made = prompts(dice, kind, short, own)
    pool = max(900, round(number * (short + own + output) / dice.real("over", 1.9, 3.6)))

    def load(world: World) -> Client:
        world.closed(number, lambda: Ask(output=output, **made(world)))
        yield 0

    what = f"{number} clients, {short} + {own} and {output} out, in {pool} tokens"
    return setup(dice, load, what, pool=pool)


def load_growth(dice: Dice) -> Setup:
    prompt, output = dice.whole("prompt", 96, 256), dice.whole("output", 96, 220)
    running = dice.real("running", 4, 9)
    slow = dice.rate(running, prompt + output / 2, output, prompt)
    times, pool = dice.real("times", 3, 5), round(2.1 * running * (prompt + output))
    at = dice.real("at", 0.25, 0.5)

    def load(world: World) -> Client:
        ask = lambda: Ask(prompt=world.words(prompt), output=output)  # noqa: E731
        yield from world.poisson(slow, ask, until=at * world.setup.duration)
        yield from world.poisson(times * slow, ask)

    what = f"Poisson {slow:.2f}/s, {times:.1f} times that from {at:.0%} on"
    return setup(dice, load, what, pool=max(900, pool), also=("pool_too_small",))


def long_generations(dice: Dice) -> Setup:
    output, prompt = dice.whole("output", 1000, 1900), dice.whole("prompt", 32, 96)
    fit = dice.whole("fit", 4, 9)
    step = dice.step_s(fit, output / 2, output, prompt)
    # About twice as many as fit begin before the first ends.
    gap = output * step / (2 * fit)
    end = 2.2 * output * step

    def load(world: World) -> Client:
        chat = dice.rate(1.5, 96, 32, 64)
        ask = lambda: Ask(prompt=world.words(64), output=32, tenant="chat")  # noqa: E731
        world.start(world.poisson(chat, ask))
        yield 0.1 * world.setup.duration
        while world.open:
            words = world.words(prompt)
            world.start(one(Ask(prompt=words, output=output, tenant="agent")))
            yield gap

    made = setup(
        dice, load, f"one {prompt} + {output} each {gap:.1f} s, beside a chat", pool=fit * output
    )
    made.duration = max(made.duration, end)
    return made


def block_leak(dice: Dice) -> Setup:
    made = steady(dice, running=dice.real("running", 2, 6), fill=0.3)
    share, load = dice.real("lost_share", 0.15, 0.35), made.load

    def leaking(world: World) -> Client:
        world.start(load(world))
        while world.open:
            yield world.setup.duration / 40
            pool = world.engines[0].scheduler.kv_cache_manager.block_pool
            blocks = max(1, round(share * pool.num_gpu_blocks / 40))
            if pool.get_num_free_blocks() > 2 * blocks:
                world.leaked.append(pool.get_new_blocks(blocks))

    made.load = leaking
    made.what += f"; planted: {share:.0%} of the blocks are taken bit by bit and never given back"
    return made


def head_of_line(dice: Dice) -> Setup:
    big, output = dice.whole("big", 1100, 1900), dice.whole("big_output", 48, 128)
    pool = round((big + output) * dice.real("pool_by_big", 1.55, 1.9))
    chat, answer = dice.whole("chat", 48, 128), dice.whole("answer", 24, 64)
    rate = dice.rate(dice.real("running", 1, 3), chat + answer, answer, chat)
    number = dice.whole("bulk_clients", 2, 3)

    def load(world: World) -> Client:
        ask = lambda: Ask(prompt=world.words(big), output=output, tenant="bulk")  # noqa: E731
        world.closed(number, ask)
        small = lambda: Ask(prompt=world.words(chat), output=answer, tenant="chat")  # noqa: E731
        yield from world.poisson(rate, small)

    what = f"{number} bulk clients {big} + {output} in {pool} tokens, chat {rate:.1f}/s"
    return setup(dice, load, what, pool=pool)


def max_num_seqs_cap(dice: Dice, kind: str = "unique") -> Setup:
    cap, output = dice.whole("cap", 3, 10), dice.whole("output", 64, 160)
    number = round(cap * dice.real("over", 2, 5))
    made = prompts(dice, kind, dice.whole("prompt", 48, 224), 32)

    def load(world: World) -> Client:
        world.closed(number, lambda: Ask(output=output, **made(world)))
        yield 0

    pool = round(cap * 600 * dice.real("room", 2, 5))
    return setup(dice, load, f"{number} clients, at most {cap} run", pool=max(2048, pool), seqs=cap)


def token_budget_small(dice: Dice, kind: str = "unique") -> Setup:
    budget, prompt = dice.of("budget", 48, 64, 96), dice.whole("prompt", 700, 1500)
    output = dice.whole("output", 8, 32)
    most = 1 / (prompt / budget * (dice.base + budget * dice.prompt))
    rate = most * dice.real("load", 0.85, 1.15)
    made = prompts(dice, kind, prompt - 32, 32)

    def load(world: World) -> Client:
        yield from world.poisson(rate, lambda: Ask(output=output, **made(world)))

    what = f"Poisson {rate:.2f}/s of {prompt} tokens, {budget} a step"
    return setup(dice, load, what, pool=24000, seqs=32, budget=budget)


def compute_bound(dice: Dice) -> Setup:
    prompt, output = dice.whole("prompt", 600, 1400), dice.whole("output", 8, 24)
    most = 1 / (prompt * (dice.prompt + dice.base / 2048))
    rate = most * dice.real("over", 1.2, 1.8)

    def load(world: World) -> Client:
        yield from world.poisson(rate, lambda: Ask(prompt=world.words(prompt), output=output))

    return setup(dice, load, f"Poisson {rate:.1f}/s of {prompt} + {output}", pool=60000, seqs=128)


def engine_slowed(dice: Dice, kind: str = "shared") -> Setup:
    made = steady(dice, running=dice.real("running", 3, 9), fill=0.4, kind=kind)
    times, at, load = dice.real("times", 3, 7), dice.real("at", 0.3, 0.55), made.load

    def slowing(world: World) -> Client:
        world.start(load(world))
        yield at * world.setup.duration
        for part in world.pace:
            world.pace[part] = round(times * world.pace[part])

    made.load = slowing
    made.what += f"; each step {times:.1f} times as long from {at:.0%} on"
    return made


def decode_stalled(dice: Dice, kind: str = "unique") -> Setup:
    number, output = dice.whole("chats", 4, 10), dice.whole("output", 200, 400)
    long, at_once = dice.whole("long", 1500, 2000), dice.whole("at_once", 2, 5)
    gap = dice.real("gap", 2, 5) + at_once * long * dice.prompt
    made = prompts(dice, kind, 160, 32)

    def load(world: World) -> Client:
        world.closed(number, lambda: Ask(output=output, tenant="chat", **made(world)))
        while world.open:
            yield gap
            for _ in range(at_once):
                words = world.words(long)
                world.start(one(Ask(prompt=words, output=4, tenant="rag")))

    what = f"{number} chats; each {gap:.1f} s {at_once} prompts of {long} tokens, 8192 a step"
    return setup(dice, load, what, pool=36000, budget=8192)


def bursts(dice: Dice, kind: str = "unique") -> Setup:
    number, output = dice.whole("burst", 30, 70), dice.whole("output", 32, 72)
    made = prompts(dice, kind, dice.whole("prompt", 160, 320), 32)
    times = dice.whole("bursts", 3, 4)
    calm = dice.rate(0.7, 300, output, 250)

    def load(world: World) -> Client:
        def ask() -> Ask:
            return Ask(output=output, **made(world))

        world.start(world.poisson(calm, ask))
        for _ in range(times):
            yield world.setup.duration / (times + 0.6) * world.rng.uniform(0.8, 1.1)
            for _ in range(number):
                world.start(one(ask()))

    pool = round(number * 300 * dice.real("room", 0.25, 0.5))
    return setup(dice, load, f"{times} bursts of {number}, little beside", pool=max(4096, pool))


# -- prefixes --------------------------------------------------------------------------------------


def prefix_evicted(dice: Dice) -> Setup:
    shared, number = dice.whole("shared", 384, 640), dice.whole("system_prompts_chat", 3, 6)
    big, output = dice.whole("big", 1200, 1700), dice.whole("answer", 24, 48)
    chat = dice.rate(dice.real("running", 1.5, 3), shared, output, shared)
    bulk = 0.45 / (big * dice.prompt + 10 * dice.base)

    def load(world: World) -> Client:
        long = lambda: Ask(prompt=world.words(big), output=8, tenant="batch")  # noqa: E731
        world.start(world.poisson(bulk, long))

        def ask() -> Ask:
            system = world.words(shared, f"system {world.rng.randrange(number)}")
            return Ask(prompt=system + world.words(32), output=output, tenant="chat")

        yield from world.poisson(chat, ask)

    pool = round((number * shared + 2.2 * big) * dice.real("room", 0.75, 1.0))
    what = f"chat {chat:.1f}/s, {number} system prompts; {bulk:.1f}/s of {big} that nobody shares"
    return setup(dice, load, what, pool=pool)


def working_set_too_big(dice: Dice, ranks: int = 1) -> Setup:
    shared, tenants = dice.whole("shared", 384, 640), dice.whole("tenants", 16, 32)
    output, running = dice.whole("output", 16, 40), dice.real("running", 1.5, 3)
    rate = ranks * dice.rate(running, shared, output, shared)
    pool = round(tenants * shared * dice.real("share", 0.5, 0.8))

    def load(world: World) -> Client:
        at = 0

        def ask() -> Ask:
            nonlocal at
            at += 1
            # With several engines each of them meets every tenant in turn.
            tenant = f"t{at // ranks % tenants}"
            prompt = world.words(shared, tenant) + world.words(32)
            return Ask(prompt=prompt, output=output, tenant=tenant)

        yield from world.poisson(rate, ask)

    what = f"{tenants} tenants of {shared} tokens in turn, {rate:.1f}/s, in {pool} tokens"
    return setup(dice, load, what, pool=pool, ranks=ranks)


def round_robin_replicas(dice: Dice) -> Setup:
    made = working_set_too_big(dice, ranks=dice.of("ranks", 2, 3))
    made.also = ("working_set_too_big",)
    return made


def hot_replica(dice: Dice) -> Setup:
    ranks, cap = dice.of("ranks", 2, 3), dice.whole("cap", 4, 10)
    hot, output = round(cap * dice.real("over", 1.6, 3)), dice.whole("output", 64, 140)

    def load(world: World) -> Client:
        def ask(tenant: str, rank: int) -> Ask:
            prompt = world.words(320, tenant) + world.words(48)
            return Ask(prompt=prompt, output=output, tenant=tenant, rank=rank)

        world.closed(hot, lambda: ask("hot", 0))
        for rank in range(1, ranks):
            world.closed(2, partial(ask, f"t{rank}", rank))
        yield 0

    what = f"{ranks} engines by affinity: {hot} clients on one, 2 on each other"
    return setup(dice, load, what, pool=cap * 1500, seqs=cap, ranks=ranks)


def varying_prefix(dice: Dice) -> Setup:
    return steady(dice, running=dice.real("running", 2, 7), fill=0.3, kind="varying")


def cache_salts(dice: Dice) -> Setup:
    return steady(dice, running=dice.real("running", 2, 7), fill=0.3, kind="salted")


def prefix_shorter_than_block(dice: Dice) -> Setup:
    block = dice.of("block_size", 32, 64)
    shared = round(block * dice.real("shared_blocks", 0.5, 0.95))
    unique, output = dice.whole("unique", 8, 40), dice.whole("output", 24, 64)
    rate = dice.rate(dice.real("running", 2, 8), shared + unique, output, shared + unique)

    def load(world: World) -> Client:
        def ask() -> Ask:
            return Ask(prompt=world.words(shared, "system") + world.words(unique), output=output)

        yield from world.poisson(rate, ask)

    what = f"{shared} shared tokens in blocks of {block}, {unique} behind"
    return setup(dice, load, what, pool=12000, block=block)


def prefix_caching_off(dice: Dice) -> Setup:
    running = dice.real("running", 2, 7)
    off = ("--no-enable-prefix-caching",)
    return steady(dice, running=running, fill=0.3, cached=False, more=off)


def template_change(dice: Dice) -> Setup:
    made = steady(dice, running=dice.real("running", 2, 5), fill=0.3)
    shared, unique = dice.drawn["shared"], dice.drawn["unique"]
    output, at = dice.drawn["output"], dice.real("at", 0.35, 0.6)
    rate = dice.rate(3, shared + unique, output, shared + unique)
    good = prompts(dice, "shared", shared, unique)
    bad = prompts(dice, "varying", shared, unique)

    def load(world: World) -> Client:
        until = at * world.setup.duration
        yield from world.poisson(rate, lambda: Ask(output=output, **good(world)), until=until)
        yield from world.poisson(rate, lambda: Ask(output=output, **bad(world)))

    made.load, made.what = load, f"Poisson {rate:.1f}/s; a varying field first from {at:.0%} on"
    return made


def evicted_between_turns(dice: Dice) -> Setup:
    sessions, think = dice.whole("sessions", 24, 44), dice.real("think", 5, 9)
    pool = round(sessions * 900 * dice.real("share", 0.12, 0.22))
    return _turns(dice, sessions, think, pool, "more than the pool keeps")


# -- clients, front end, life ----------------------------------------------------------------------


def noisy_tenant(dice: Dice) -> Setup:
    cap, flood = dice.whole("cap", 10, 20), dice.whole("flood", 30, 60)
    output, at = dice.whole("output", 120, 220), dice.real("at", 0.2, 0.4)
    rate = dice.rate(1.5, 100, 48, 64)

    def load(world: World) -> Client:
        chat = lambda: Ask(  # noqa: E731
            prompt=world.words(256, "chat") + world.words(64), output=48, tenant="chat"
        )
        world.start(world.poisson(rate, chat))
        yield at * world.setup.duration
        world.closed(
            flood,
            lambda: Ask(
                prompt=world.words(256, "flood") + world.words(64), output=output, tenant="flood"
            ),
        )

    what = f"chat {rate:.1f}/s; from {at:.0%} on {flood} clients of another tenant, {cap} run"
    return setup(dice, load, what, pool=cap * 900, seqs=cap, also=("max_num_seqs_cap",))


def client_aborts(dice: Dice, kind: str = "unique") -> Setup:
    cap, output = dice.whole("cap", 5, 10), dice.whole("output", 24, 48)
    made = prompts(dice, kind, dice.whole("prompt", 96, 256), 32)
    step = dice.step_s(cap, 300, output, 200)
    rate = cap / (output * step) * dice.real("over", 1.15, 1.7)
    timeout = output * step * dice.real("patience", 1.6, 3.5)

    def load(world: World) -> Client:
        def patient() -> Client:
            ask = made(world)
            for again in range(3):
                tenant = "retry" if again else "a"
                told = yield Ask(output=output, tenant=tenant, timeout=timeout, **ask)
                if told != "timeout":
                    return

        yield from world.poisson(rate, patient)

    what = f"Poisson {rate:.1f}/s, clients give up after {timeout:.1f} s and ask again twice"
    return setup(dice, load, what, pool=cap * 1200, seqs=cap, also=("max_num_seqs_cap",))


def too_long_requests(dice: Dice) -> Setup:
    made, share = (
        steady(dice, running=dice.real("running", 2, 5), fill=0.3),
        dice.real("bad", 0.2, 0.5),
    )
    usual = made.load

    def load(world: World) -> Client:
        world.start(usual(world))
        rate = share * dice.rate(4, 500, dice.drawn["output"], 200)
        too_long = world.setup.max_model_len + 50
        yield from world.poisson(
            rate, lambda: Ask(prompt=world.words(too_long), output=16, tenant="big")
        )

    made.load = load
    made.what += "; beside them prompts longer than max_model_len"
    return made


def admission_limit(dice: Dice) -> Setup:
    cap, limit = dice.whole("cap", 4, 10), dice.whole("queue_limit", 4, 16)
    output = dice.whole("output", 64, 140)
    rate = cap / (output * dice.step_s(cap, 150, output, 80)) * dice.real("over", 1.3, 2)

    def load(world: World) -> Client:
        yield from world.poisson(rate, lambda: Ask(prompt=world.words(80), output=output))

    what = f"Poisson {rate:.1f}/s, {cap} run, the front end refuses behind {limit} that wait"
    return setup(
        dice, load, what, pool=cap * 800, seqs=cap, queue_limit=limit, also=("max_num_seqs_cap",)
    )


def start_refused(dice: Dice) -> Setup:
    made = healthy_low(dice)
    at = made.arguments.index("--num-gpu-blocks-override") + 1
    made.arguments[at] = str(dice.whole("blocks", 3, 30))
    made.what = "the pool is smaller than one request of max_model_len"
    return made


def restart(dice: Dice) -> Setup:
    made = steady(dice, running=dice.real("running", 3, 8), fill=0.4)
    return _restarted(dice, made)


def _restarted(dice: Dice, made: Setup) -> Setup:
    made.restart_at = dice.real("at", 0.35, 0.6) * made.duration
    made.down = dice.real("down", 8, 25)
    made.what += f"; restarted at {made.restart_at:.0f} s, away for {made.down:.0f} s"
    return made


SINGLE: Final[dict[str, Callable[[Dice], Setup]]] = {
    "pool_too_small": pool_too_small,
    "load_growth": load_growth,
    "long_generations": long_generations,
    "block_leak": block_leak,
    "head_of_line": head_of_line,
    "max_num_seqs_cap": max_num_seqs_cap,
    "token_budget_small": token_budget_small,
    "compute_bound": compute_bound,
    "engine_slowed": engine_slowed,
    "decode_stalled_by_prefill": decode_stalled,
    "bursts": bursts,
    "prefix_evicted": prefix_evicted,
    "working_set_too_big": working_set_too_big,
    "round_robin_replicas": round_robin_replicas,
    "hot_replica": hot_replica,
    "varying_prefix": varying_prefix,
    "cache_salts": cache_salts,
    "prefix_shorter_than_block": prefix_shorter_than_block,
    "prefix_caching_off": prefix_caching_off,
    "template_change": template_change,
    "evicted_between_turns": evicted_between_turns,
    "noisy_tenant": noisy_tenant,
    "client_aborts": client_aborts,
    "too_long_requests": too_long_requests,
    "admission_limit": admission_limit,
    "start_refused": start_refused,
    "restart": restart,
    "nothing_shared": healthy_unique,
}
"""One cause each, by the name of the diagnosis."""

HEALTHY: Final[dict[str, Callable[[Dice], Setup]]] = {
    "healthy_low": healthy_low,
    "healthy_high_load": healthy_high_load,
    "healthy_full_pool": healthy_full_pool,
    "healthy_multi_turn": healthy_multi_turn,
    "healthy_ranks": healthy_ranks,
    "healthy_speculative": healthy_speculative,
}

PAIRS: Final[dict[str, Callable[[Dice], Setup]]] = {
    "pool_too_small+varying_prefix": lambda dice: pool_too_small(dice, "varying"),
    "pool_too_small+cache_salts": lambda dice: pool_too_small(dice, "salted"),
    "pool_too_small+restart": lambda dice: _restarted(dice, pool_too_small(dice)),
    "max_num_seqs_cap+varying_prefix": lambda dice: max_num_seqs_cap(dice, "varying"),
    "max_num_seqs_cap+cache_salts": lambda dice: max_num_seqs_cap(dice, "salted"),
    "engine_slowed+varying_prefix": lambda dice: engine_slowed(dice, "varying"),
    "engine_slowed+cache_salts": lambda dice: engine_slowed(dice, "salted"),
    "bursts+varying_prefix": lambda dice: bursts(dice, "varying"),
    "client_aborts+cache_salts": lambda dice: client_aborts(dice, "salted"),
    "decode_stalled_by_prefill+varying_prefix": lambda dice: decode_stalled(dice, "varying"),
    "token_budget_small+cache_salts": lambda dice: token_budget_small(dice, "salted"),
}
"""Two causes at once."""


def drawn(name: str, seed: int, *, held_out: bool) -> Setup:
    """The incident of a name, in a configuration of its own for each seed."""
    dice = Dice(name, seed, held_out=held_out)
    made = {**SINGLE, **HEALTHY, **PAIRS}[name](dice)
    made.name = name
    made.modes = ("healthy",) if name in HEALTHY else tuple(name.split("+"))
    return made
