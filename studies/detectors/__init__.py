"""Which detector finds which planted kernel.

    python -m studies.detectors

writes tests/meta/detectors.md anew, in ten minutes of two cores. The bugs are those of the tests,
so a checkout is needed.
"""
