"""Incidents in which prompts are computed again that could have been found."""

from __future__ import annotations

from functools import partial

from scripts.incidents.drawing import Dice, prompts, setup, steady, turns
from scripts.incidents.world import Ask, Client, Setup, World


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
    return turns(dice, sessions, think, pool, "more than the pool keeps")
