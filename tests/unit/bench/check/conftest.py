import pytest


@pytest.fixture(autouse=True)
def _small_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode is timed over a cold cache: of a small one, so that inputs in turn are few."""
    monkeypatch.setattr("bench.machine.timing.cpu_cache_bytes", lambda: 20_000)
