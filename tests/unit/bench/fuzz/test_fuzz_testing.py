"""`parametrize_with_allocators`: a test for each allocator, which fails with what is wrong."""

import pytest

from bench.fuzz.testing import AllocatorFuzz, parametrize_with_allocators

# A slot is given to two sequences.
SHARING = """
class Pool:
    def __init__(self, size):
        self.size, self.lengths = size, {}

    def admit(self, sequence, tokens, *, num_tokens, salt):
        if sequence in self.lengths:
            raise ValueError(sequence)
        self.lengths[sequence] = len(tokens)
        return 0

    def append(self, sequence, tokens):
        self.lengths[sequence] += len(tokens)
        return True

    def free(self, sequence):
        del self.lengths[sequence]

    def slots(self, sequence):
        return list(range(self.lengths[sequence]))

    def counts(self):
        return 0, 0, 1


def make(num_blocks, block_size, *, prefix_caching, window):
    return Pool(block_size)


make.capabilities = {"prefix_caching": False}
"""


def test_each_allocator_is_a_test_by_its_name():
    mark = parametrize_with_allocators(["paged", "a.b:make"]).mark
    assert mark.args[0] == ("allocator", "fuzz")
    assert [(each.values[0], each.id) for each in mark.args[1]] == [
        ("paged", "paged"),
        ("a.b:make", "a.b:make"),
    ]


def test_a_right_allocator_passes():
    AllocatorFuzz(examples=20, seed=0)("paged")


def test_a_wrong_one_fails_with_a_program_that_can_be_replayed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sharing.py").write_text(SHARING)
    with pytest.raises(pytest.fail.Exception) as failed:
        AllocatorFuzz(examples=200, seed=0)("sharing.py:make")
    said = str(failed.value)
    assert said.startswith("sharing.py:make fails conservation: ")
    (saved,) = (tmp_path / ".pagedbench" / "findings").glob("*.json")
    assert f"--replay .pagedbench/findings/{saved.name}" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"allocators": []}, "there is no allocator: name one"),
        ({"allocators": "paged"}, "give a list"),
        ({"allocators": ["paged"], "examples": 0}, "run at least 1"),
        ({"allocators": ["paged"], "seed": -1}, "seeds are 0 to"),
    ],
)
def test_what_makes_no_test_is_refused(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=said):
        parametrize_with_allocators(**arguments)
