"""The Hypothesis profiles, all of them, and how a test says how many examples it wants.

A profile's ``max_examples`` is a percentage: a test asks for the number it needs in everyday runs,
``@examples(300)``, and the active profile scales it. ``--hypothesis-profile NAME`` chooses one.
"""

from typing import Any

from hypothesis import HealthCheck, settings

DEFAULT_PROFILE = "ci"

# max_examples per profile, in per cent of what each test asks for.
LONG = "long"
PROFILES = {"quick": 10, "ci": 100, LONG: 2000}


def register_profiles() -> None:
    """Make every profile known to Hypothesis and load the default one.

    Call before pytest configures its plugins: Hypothesis' own plugin then loads the profile that
    the command line names.
    """
    # Where the variable CI is set, Hypothesis loads a built-in profile that repeats the same
    # examples in every run and stores none. Name the parent, or what is not set here comes from it.
    parent = settings.get_profile("default")
    for name, percent in PROFILES.items():
        settings.register_profile(
            name,
            parent,
            max_examples=percent,
            deadline=None,  # interpreted kernels and shared machines: time says nothing about right
            print_blob=True,
            suppress_health_check=[HealthCheck.too_slow],
        )
    settings.load_profile(DEFAULT_PROFILE)


def scale() -> float:
    """Factor by which the active profile multiplies the examples that a test asks for."""
    return settings().max_examples / 100


def examples(count: int, **overrides: Any) -> settings:
    """Settings for a test that runs ``count`` examples in everyday runs, scaled by the profile.

    ``overrides`` go to ``hypothesis.settings``, for example ``stateful_step_count``. For a state
    machine: ``TestPool = PoolMachine.TestCase; TestPool.settings = examples(100)``.
    """
    if count < 1:
        raise ValueError(
            f"a property needs at least one example, not {count}: pass a positive count"
        )
    return settings(max_examples=max(1, round(count * scale())), **overrides)
