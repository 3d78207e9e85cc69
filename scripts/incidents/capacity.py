"""Incidents of memory, of the queue and of the engine's steps."""

from __future__ import annotations

import json

from scripts.incidents.drawing import Dice, prompts, setup, steady
from scripts.incidents.world import Ask, Client, Setup, World, one


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


def request_larger_than_pool(dice: Dice) -> Setup:
    pool = dice.whole("pool", 1100, 1700)
    chat, answer = dice.whole("chat", 48, 128), dice.whole("answer", 24, 64)
    rate = dice.rate(dice.real("running", 1, 2.5), chat + answer, answer, chat)
    large, at = round(pool * dice.real("large_by_pool", 1.1, 1.6)), dice.real("at", 0.25, 0.5)

    def load(world: World) -> Client:
        ask = lambda: Ask(prompt=world.words(chat), output=answer, tenant="chat")  # noqa: E731
        yield from world.poisson(rate, ask, until=at * world.setup.duration)
        world.start(one(Ask(prompt=world.words(large), output=8, tenant="bulk")))
        yield from world.poisson(rate, ask)

    what = f"chat {rate:.1f}/s; at {at:.0%} a prompt of {large} in {pool} tokens, let in unchecked"
    return setup(dice, load, what, pool=pool, longest=4096, unchecked=True)


def offload_bound(dice: Dice) -> Setup:
    shared, tenants = dice.whole("shared", 384, 640), dice.whole("tenants", 90, 180)
    output, running = dice.whole("output", 16, 40), dice.real("running", 2, 5)
    rate = dice.rate(running, shared, output, 32)
    held = dice.real("held", 0.25, 0.4)
    link = (1 - held) * rate * shared / dice.real("over", 1.02, 1.15)
    tier = {
        "kv_connector": "SlowTier",
        "kv_connector_module_path": "scripts.incidents.slow_tier",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"tokens_per_s": round(link)},
    }

    def load(world: World) -> Client:
        def ask() -> Ask:
            tenant = f"t{world.rng.randrange(tenants)}"
            prompt = world.words(shared, tenant) + world.words(32)
            return Ask(prompt=prompt, output=output, tenant=tenant)

        world.start(world.poisson(rate, ask))
        while world.open:  # an engine that only waits looks again when something happens
            yield dice.base

    pool = round(tenants * shared * held)
    what = f"{rate:.1f}/s of {tenants} tenants in {pool} tokens; a tier gives {link:.0f} tokens/s"
    more = ("--kv-transfer-config", json.dumps(tier))
    return setup(dice, load, what, pool=pool, more=more, also=("working_set_too_big",))
