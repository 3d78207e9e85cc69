"""Servers with nothing wrong, and those that look as if there were."""

from __future__ import annotations

import random

from scripts.incidents.drawing import Dice, setup, steady, turns
from scripts.incidents.world import Ask, Client, Setup, World


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


def healthy_multi_turn(dice: Dice) -> Setup:
    sessions = dice.whole("sessions", 6, 16)
    think = dice.real("think", 1.5, 4)
    return turns(dice, sessions, think, 2600 * sessions, "all stay in the pool")


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
