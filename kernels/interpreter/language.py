"""What a kernel may say when it is compiled, and not when Triton interprets it.

Stock, a builtin of the language under another name does not know that it is interpreted, `a and b`
of two blocks is `b`, and a kernel does not tell which of its parameters are constants.
"""

from __future__ import annotations

import ast
import inspect
from types import FunctionType
from typing import Any

import triton.language as tl

from kernels.interpreter import libdevice


def call_builtins_by_any_name() -> None:
    """Let `exp2 = tl.exp2` at a module's top be called in a kernel, as it is where one compiles.

    Stock, only attributes of the language are patched: whatever else holds a builtin has the one
    that asks for `@triton.jit`.
    """
    stock = tl.core.builtin(lambda: None).__code__

    def wrapper_of(fn: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if kwargs.get("_semantic") is None:
                from triton.runtime.interpreter import interpreter_semantic

                kwargs["_semantic"] = interpreter_semantic
            return fn(*args, **kwargs)

        return wrapper

    mended = wrapper_of(None).__code__
    modules = (tl, tl.core, tl.math, *libdevice.LIBRARIES)
    for owner in (*modules, tl.core.tensor, tl.core.tensor_descriptor_base):
        for member in vars(owner).values():
            if isinstance(member, FunctionType) and member.__code__ is stock:
                member.__code__ = mended

    def counted(self: Any) -> Any:
        start, end, step = (getattr(n, "value", n) for n in (self.start, self.end, self.step))
        return iter(range(start, end, step))

    for loop in (tl.core.range, tl.core.static_range):
        if isinstance(loop, type):
            loop.__iter__ = counted  # type: ignore[attr-defined]


def combine_blocks_elementwise(module: Any) -> None:
    """`a and b`, `a or b` of blocks are elementwise, as compiled; of anything else, Python's."""

    def combined(operator: str, *values: Any) -> Any:
        result = values[0]()
        for value in values[1:]:
            if isinstance(result, tl.tensor) and result.type.is_block():
                other = module.interpreter_semantic.to_tensor(value())
                result = getattr(module.interpreter_semantic, operator)(result, other)
                continue
            if bool(result) is (operator == "logical_or"):
                return result
            result = value()
        return result

    def visit_BoolOp(self: Any, node: Any) -> Any:  # noqa: N802 - as ast's visitors are called
        self.generic_visit(node)
        # A lambda hides assignments within it: then Python's own operator is left.
        if any(isinstance(part, ast.NamedExpr) for part in ast.walk(node)):
            return node
        nothing = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
        operator = "logical_and" if isinstance(node.op, ast.And) else "logical_or"
        call = ast.Call(
            func=ast.Name(id="_combined", ctx=ast.Load()),
            args=[
                ast.Constant(value=operator),
                *(ast.Lambda(args=nothing, body=value) for value in node.values),
            ],
            keywords=[],
        )
        return ast.copy_location(call, node)

    module._combined = combined  # the rewriter gives its module's names to every kernel
    module.ASTTransformer.visit_BoolOp = visit_BoolOp


def tell_constants(module: Any) -> None:
    """`kernel.constexprs`, positions of the parameters that are constants, as of a compiled one."""

    def constexprs(self: Any) -> list[int]:
        parameters = inspect.signature(self.fn).parameters.values()
        return [
            number
            for number, parameter in enumerate(parameters)
            if parameter.annotation is tl.constexpr or "constexpr" in str(parameter.annotation)
        ]

    module.InterpretedFunction.constexprs = property(constexprs)
