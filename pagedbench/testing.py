"""For test files: checks of kernels and allocators, the memory checker, and saved findings.

    from pagedbench.testing import parametrize_with_checks
    from my_kernel import attention

    @parametrize_with_checks([attention])
    def test_attention(kernel, check):
        check(kernel)

`watch_memory` watches what interpreted Triton kernels load and store. `run_program` runs a program
of calls that the fuzzer of allocators saved.
"""

from typing import TYPE_CHECKING

from pagedbench import _offering

if TYPE_CHECKING:
    from bench.check.testing import ExpectedFailure as ExpectedFailure
    from bench.check.testing import StaleExpectedFailure as StaleExpectedFailure
    from bench.check.testing import UnmetExpectedFailure as UnmetExpectedFailure
    from bench.check.testing import parametrize_with_checks as parametrize_with_checks
    from bench.fuzz.testing import parametrize_with_allocators as parametrize_with_allocators
    from kernels.interpreter.memory import Fault as Fault
    from kernels.interpreter.memory import Owned as Owned
    from kernels.interpreter.memory import Role as Role
    from kernels.interpreter.memory import attention_roles as attention_roles
    from kernels.interpreter.memory import copy_roles as copy_roles
    from kernels.interpreter.memory import watch_attention as watch_attention
    from kernels.interpreter.memory import watch_memory as watch_memory
    from kernels.interpreter.memory import write_roles as write_roles
    from reference.allocator.programs import Pool as Pool
    from reference.allocator.programs import Program as Program
    from reference.allocator.programs import Step as Step
    from reference.system.driving import run_program as run_program
    from subjects.allocators.resolve import open_allocator as open_allocator

_HOMES = {
    "bench.check.testing": (
        "ExpectedFailure",
        "StaleExpectedFailure",
        "UnmetExpectedFailure",
        "parametrize_with_checks",
    ),
    "bench.fuzz.testing": ("parametrize_with_allocators",),
    "kernels.interpreter.memory": (
        "Fault",
        "Owned",
        "Role",
        "attention_roles",
        "copy_roles",
        "watch_attention",
        "watch_memory",
        "write_roles",
    ),
    "reference.allocator.programs": ("Pool", "Program", "Step"),
    "reference.system.driving": ("run_program",),
    "subjects.allocators.resolve": ("open_allocator",),
}
__all__, __getattr__, __dir__ = _offering(__name__, _HOMES)
