"""The memory checker: which memory an interpreted kernel touches, and whether it may.

`roles`      what each tensor of a call is, and whose
`regions`    shadow state of each tensor; addresses that name their tensor
`judge`      what is legal
`findings`   what is said of what is not
`hooks`      between the interpreter and memory
`watch`      the entry: `watch_memory`, `watch_attention`
"""

from kernels.interpreter.memory.findings import Fault, Finding
from kernels.interpreter.memory.regions import Traffic
from kernels.interpreter.memory.roles import Owned, Role, attention_roles, copy_roles, write_roles
from kernels.interpreter.memory.watch import MemoryReport, watch_attention, watch_memory

__all__ = [
    "Fault",
    "Finding",
    "MemoryReport",
    "Owned",
    "Role",
    "Traffic",
    "attention_roles",
    "copy_roles",
    "watch_attention",
    "watch_memory",
    "write_roles",
]
