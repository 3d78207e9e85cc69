"""What is wrong with a table of TOML, in its reader's words: the key, its value, what to write."""

from __future__ import annotations

import json
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from pydantic import ValidationError

REMEDIES: Final = {
    "tuple_type": "write a list: {key} = [{value}]",
    "string_type": 'write text: "{value}"',
    "dict_type": "make it a table",
}
"""By pydantic's word for what is wrong."""


def refusal(error: ValidationError, keys: Iterable[str]) -> str:
    """The first thing that is wrong, with the remedy; `keys` are those that there are."""
    found = error.errors()[0]
    key, *inside = found["loc"]
    if found["type"] == "extra_forbidden":
        near = get_close_matches(str(key), list(keys), n=1)
        return f"{key}: there is no such key" + (f"; did you mean {near[0]}?" if near else "")
    value = json.dumps(found["input"], ensure_ascii=False, default=str)
    wanted = found["msg"].removeprefix("Input should be ").partition(", ")[0]
    remedy = REMEDIES.get(found["type"], f"it has to be {wanted}").format(key=key, value=value)
    where = f", number {inside[0] + 1}," if inside and isinstance(inside[0], int) else ""
    named = f".{inside[0]}" if inside and not where else ""
    return f"{key}{named}{where} is {value}; {remedy}"
