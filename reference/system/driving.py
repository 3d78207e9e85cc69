"""What drives a subject through programs: an allocator, or a system that is built on one."""

from __future__ import annotations

from collections.abc import Mapping

from reference.allocator import machine
from reference.allocator.contract import (
    AllocatorCapabilities,
    AllocatorFactory,
    capabilities_of_factory,
)
from reference.allocator.machine import AllocatorMachine, Finding
from reference.allocator.programs import Program
from reference.system.contract import CHECKS


def machine_of(can: AllocatorCapabilities) -> type[AllocatorMachine]:
    """The machine for what declares this."""
    if not can.system:
        return AllocatorMachine
    from reference.system.machine import SystemMachine  # torch, which an allocator does not need

    return SystemMachine


def checks_of(can: AllocatorCapabilities) -> Mapping[str, str]:
    """Every check of what declares this by name, and what must hold."""
    return CHECKS if can.system else machine.CHECKS


def run_program(
    factory: AllocatorFactory,
    program: Program,
    *,
    capabilities: AllocatorCapabilities | None = None,
) -> Finding | None:
    """Run a program, and return what it shows, if anything. What makes no sense is left out."""
    can = capabilities or capabilities_of_factory(factory)
    return machine.run_program(factory, program, capabilities=can, machine=machine_of(can))
