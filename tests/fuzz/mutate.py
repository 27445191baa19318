"""Mutations of files and of JSON values, the same for the same generator."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

BYTES = (b"\x00", b"\xff", b"\x7f", b"\x80", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x00\x00\x00\x80", b"\x00" * 8,
         b"\xff" * 8, b"-1", b"9999999999", b"nan", b"1e999", b"../", b"\n", b'"', b"{", b"[" * 300)
VALUES = (None, True, False, 0, -1, 1, 0.5, 1e308, -1e-308, 2**31, 2**63, 10**400, "", "x" * 5000, "../../etc/passwd",
          "\x00", "\u202e", "nan", [], {}, [None], [[1]], {"": None}, "fp16", "frame", "passed")
TOKENS = ("NaN", "Infinity", "-Infinity", "1e999", "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000,
          "9" * 5000, '"\\ud800"')
HOLE = "\x01hole"


def mutated_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` after one to four changes: bits, cuts, insertions, repeats, and values at which programs err."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        # Headers are at both ends, and most of a file is payload.
        near = int(rng.integers(0, 200))
        at = (near, len(changed) - near, int(rng.integers(0, len(changed) + 1)))[rng.integers(3)]
        at, length = min(max(at, 0), len(changed)), int(rng.integers(1, 64))
        match rng.integers(7):
            case 0 if at < len(changed):
                changed[at] ^= 1 << rng.integers(8)
            case 1 if at < len(changed):
                changed[at] = rng.integers(256)
            case 2:
                value = BYTES[rng.integers(len(BYTES))]
                changed[at : at + len(value)] = value
            case 3:
                changed[at:at] = BYTES[rng.integers(len(BYTES))]
            case 4:
                del changed[at : at + length]
            case 5:
                changed[at:at] = changed[at : at + length]
            case 6:
                del changed[at if rng.random() < 0.5 else len(changed) - length :]
    return bytes(changed)


def mutated_json(value: Any, rng: np.random.Generator) -> str:
    """The JSON of `value` with one to three of its parts replaced, removed, renamed, repeated or wrapped."""
    root = {"": copy.deepcopy(value)}
    token = TOKENS[rng.integers(len(TOKENS))]
    for _ in range(rng.integers(1, 4)):
        parent, key = _place(root, rng)
        match rng.integers(7):
            case 0 | 1:
                parent[key] = copy.deepcopy(VALUES[rng.integers(len(VALUES))])
            case 2 if parent is not root:
                del parent[key]
            case 3:
                parent[key] = [parent[key]] * int(rng.integers(1, 4))
            case 4 if isinstance(parent, dict) and parent is not root:
                parent[f"{key}_"] = parent.pop(key)
            case 5:
                other, other_key = _place(root, rng)
                parent[key] = copy.deepcopy(other[other_key])
            case _:
                parent[key] = HOLE
    return json.dumps(root[""]).replace(json.dumps(HOLE), token)


def _place(root: dict[str, Any], rng: np.random.Generator) -> tuple[Any, Any]:
    """A random container within `root` and a key of it."""
    parent, key = root, ""
    while isinstance(parent[key], dict | list) and len(parent[key]) and rng.random() < 0.8:
        parent = parent[key]
        key = list(parent)[rng.integers(len(parent))] if isinstance(parent, dict) else int(rng.integers(len(parent)))
    return parent, key
