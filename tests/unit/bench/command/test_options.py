from bench.command.options import default_lanes


def test_as_many_lanes_as_cores_four_at_most():
    assert 1 <= default_lanes() <= 4
