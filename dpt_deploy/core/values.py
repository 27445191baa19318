"""Values that come from files: JSON within bounds, and types that accept no text for a number."""

from __future__ import annotations

import json
import math
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, StrictBool, StrictFloat, StrictInt

MAX_DEPTH = 64
"""The deepest nesting of lists and objects that both runtimes read. A manifest has about 10 levels."""
_BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|[\]}]', re.DOTALL)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""64 hexadecimal digits."""
Number = Annotated[StrictFloat, BeforeValidator(lambda value: math.nan if value is None else value)]
"""JSON has no NaN. A non-finite metric is written as null, and null is read as NaN, which never passes."""

__all__ = ["MAX_DEPTH", "Number", "Sha256", "StrictBool", "StrictFloat", "StrictInt", "parse_json"]


def parse_json(text: str) -> Any:
    """Parse JSON. Raises `ValueError` if it is not valid, nested too deeply, or contains NaN, Infinity or text
    that is not Unicode."""
    depth = 0
    for token in _BRACKETS.finditer(text):
        if token[1]:
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        elif token[0][0] != '"':
            depth -= 1
    value = json.loads(text, parse_constant=_refuse)
    json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair, as "\\ud800", cannot be written anywhere
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not valid JSON")
