"""What a launch and a nested call cost in Triton's interpreter.

Stock, a quarter of the time goes into patching the whole language anew at every nested call of a
@jit function, `tl.max` and `tl.sum` among them. Nothing here alters a result.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import triton.language as tl


def patch_language_once(module: Any) -> None:
    """Patch `triton.language` at the first launch of a module's kernels and leave it patched.

    Stock, every launch and every nested call walks all members of the language: 3 ms each. The mode
    of a process is fixed at import, so nothing in it can compile.
    """
    stock = module._patch_lang
    patched: set[frozenset[int]] = set()
    nothing = SimpleNamespace(restore=lambda: None)  # the next launch would patch the same

    def _patch_lang(fn: Any) -> SimpleNamespace:
        languages = _languages(fn)
        if languages not in patched:
            stock(fn)
            patched.add(languages)
        return nothing

    module._patch_lang = _patch_lang


@cache
def _languages(fn: Any) -> frozenset[int]:
    # The interpreter patches the language modules that the kernel's globals name. `in` would ask
    # every global whether it equals a module, and an array answers with an array.
    return frozenset(
        id(value) for value in fn.__globals__.values() if value is tl or value is tl.core
    )


def call_builtins_directly(module: Any) -> None:
    """Call a builtin of the language without the two wrappers that only add `_semantic`."""
    stock = module._patch_attr
    # Those of the language may have been mended: see `language`.
    adds_nothing = {tl.core.builtin(lambda: None).__code__, tl.core.arange.__code__}

    def _patch_attr(obj: Any, name: str, member: Any, builder: Any, scope: Any) -> None:
        if getattr(member, "__code__", None) not in adds_nothing:
            stock(obj, name, member, builder, scope)
            return
        function, semantic = member.__wrapped__, module.interpreter_semantic

        def call(*args: Any, **kwargs: Any) -> Any:
            kwargs["_semantic"] = semantic
            return function(*args, **kwargs)

        scope.set_attr(obj, name, call)

    module._patch_attr = _patch_attr
