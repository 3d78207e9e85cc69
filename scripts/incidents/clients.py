"""Incidents of clients, of the front end, and of a server's life."""

from __future__ import annotations

from scripts.incidents.drawing import Dice, prompts, setup, steady
from scripts.incidents.healthy import healthy_low
from scripts.incidents.world import Ask, Client, Setup, World


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
    return restarted(dice, made)


def restarted(dice: Dice, made: Setup) -> Setup:
    made.restart_at = dice.real("at", 0.35, 0.6) * made.duration
    made.down = dice.real("down", 8, 25)
    made.what += f"; restarted at {made.restart_at:.0f} s, away for {made.down:.0f} s"
    return made
