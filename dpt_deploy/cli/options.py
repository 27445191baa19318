"""Option types that all commands share: the same thing has the same name, spelling and help everywhere.

A size is HEIGHTxWIDTH, or one number for a square. An option that takes several values is plural, and its values are
separated by commas. Use the types as annotations of a command's dataclass:

    input_size: Size | None = None
    heads: Heads | None = None
    workers: Workers = "auto"
    max_images: Limit = None
    json: Json = False
    verbose: Verbose = False
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from ..core.contract import HEADS
from ..core.errors import BadInput
from ..core.places import is_address, normalized

MOST_WORKERS = 8


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) [pixels] of "384" or "720x1280". Raises `ValueError`."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"expected a size such as 384 or 720x1280 (HEIGHTxWIDTH), received {text!r}")
    return int(parts[0]), int(parts[-1])


def size_text(size: tuple[int, int]) -> str:
    """"720x1280" for (720, 1280)."""
    return f"{size[0]}x{size[1]}"


def resolve_workers(workers: int | Literal["auto"]) -> int:
    """The number of processes that `workers` stands for: "auto" is one per usable core, at most 8."""
    if workers != "auto":
        return workers
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MOST_WORKERS)


def check_companions(config: Any, companions: Mapping[str, Sequence[str]]) -> None:
    """Raise `BadInput` if an option is given without the one that it belongs to, because it would be ignored.

    Args:
        config: The dataclass of a command.
        companions: Field -> the fields that mean something only if that one is given (not None).
    """
    defaults = {one.name: one.default for one in dataclasses.fields(config)}
    for owner, names in companions.items():
        for name in names:
            if getattr(config, owner) is None and getattr(config, name) != defaults[name]:
                option, needed = (f"--{one.replace('_', '-')}" for one in (name, owner))
                raise BadInput(f"{option}: expected {needed} too, without which the option does nothing. Add {needed}, "
                               f"or omit {option}.")


def check_renamed(arguments: Sequence[str], renamed: Mapping[str, str]) -> None:
    """Raise `BadInput` that names the new spelling of an option that the command line spells the old way.

    Args:
        arguments: The command line without the program's name.
        renamed: Old option -> the new one, such as "--frames": "--max-frames"; or, for an option that is gone, a
            sentence that says so.
    """
    for argument in arguments:
        if argument == "--":
            return
        old = argument.partition("=")[0].replace("_", "-")
        if old in renamed:
            new = renamed[old]
            raise BadInput(f"{old} was renamed: use {new}." if new.startswith("-") else f"{old}: {new}")


def _number(text: str, least: int) -> int:
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        raise ValueError(f"expected a whole number from {least}, received {text!r}")
    return int(text)


def _positive(text: str) -> int:
    return _number(text, 1)


def _seconds(text: str) -> float:
    value = _finite(text)
    if value < 0:
        raise ValueError(f"expected a number of seconds from 0, received {text!r}")
    return value


def _workers(text: str) -> int | Literal["auto"]:
    if text != "auto" and not text.isdecimal():
        raise ValueError(f"expected auto or a whole number from 0, received {text!r}")
    return "auto" if text == "auto" else _number(text, 0)


def _head(text: str) -> str:
    if text not in HEADS:
        raise ValueError(f"expected names among {','.join(HEADS)}, received {text!r}")
    return text


def _place(text: str) -> Path | str:
    if not text:
        raise ValueError("expected a path or an address, received nothing")
    text = normalized(text)
    return text if is_address(text) else Path(text)


def _finite(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a number, received {text!r}")
    return value


def _pairs(text: str) -> dict[str, Any]:
    pairs: dict[str, Any] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not value:
            raise ValueError(f"expected NAME=VALUE, received {part!r}")
        if re.fullmatch(r"[0-9]+x[0-9]+", value):
            pairs[name] = [int(side) for side in value.split("x")]
        elif value.lower() in ("true", "false"):
            pairs[name] = value.lower() == "true"
        else:
            pairs[name] = int(value) if value.lstrip("-").isdecimal() else _finite(value)
    return pairs


def _pairs_text(pairs: dict[str, Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in pairs.items())


def _choices(text: str) -> dict[str, str]:
    chosen: dict[str, str] = {}
    for part in text.split(","):
        name, equals, value = (piece.strip() for piece in part.partition("="))
        if not name or not equals or not value or name in chosen:
            raise ValueError(f"expected NAME=CHOICE, each name once, received {part!r}")
        chosen[name] = value
    return chosen


def _share(text: str) -> tuple[int, int]:
    part, slash, parts = text.partition("/")
    if not (part.isdecimal() and slash and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"expected K/N with K from 1 to N, such as 3/16, received {text!r}")
    return int(part), int(parts)


def _one(metavar: str, parse: Callable[[str], Any], show: Callable[[Any], str] = str) -> PrimitiveConstructorSpec:
    return PrimitiveConstructorSpec(
        nargs=1, metavar=metavar, instance_from_str=lambda arguments: parse(arguments[0]),
        is_instance=lambda value: value is not None, str_from_instance=lambda value: [show(value)],
    )


def _several(
    metavar: str, parse: Callable[[str], Any], show: Callable[[Any], str] = str, count: int | None = None
) -> PrimitiveConstructorSpec:
    """Values separated by commas, as a tuple; `count` is how many there must be."""
    def read(text: str) -> tuple[Any, ...]:
        values = tuple(parse(part.strip()) for part in text.split(","))
        if count not in (None, len(values)):
            raise ValueError(f"expected {count} values separated by a comma, received {text!r}")
        if len(set(values)) < len(values) and count is None:
            raise ValueError(f"expected each value once, received {text!r}")
        return values

    return _one(metavar, read, lambda values: ",".join(map(show, values)))


def _text(part: str) -> str:
    if not part:
        raise ValueError("expected values separated by commas, received an empty one")
    return part


Size = Annotated[tuple[int, int], _one("HEIGHTxWIDTH", parse_size, size_text)]
"""(height, width) [pixels]."""
Sizes = Annotated[tuple[tuple[int, int], ...], _several("HxW,HxW,...", parse_size, size_text)]
"""Several sizes, each (height, width) [pixels]."""
SizeRange = Annotated[tuple[tuple[int, int], tuple[int, int]], _several("HxW,HxW", parse_size, size_text, 2)]
"""The smallest and the largest size, each (height, width) [pixels]."""
FrameSizes = Sizes
Batches = Annotated[tuple[int, ...], _several("N,N,...", _positive)]
"""Several batch sizes."""
BatchRange = Annotated[tuple[int, int], _several("N,N", _positive, count=2)]
"""The smallest and the largest batch size."""
Heads = Annotated[tuple[str, ...], _several("HEAD,...", _head)]
"""Names among depth, normals and alpha."""
Name = Annotated[str, _one("NAME", _text)]
"""One name."""
Names = Annotated[tuple[str, ...], _several("NAME,...", _text)]
"""Names of any kind, separated by commas."""
Triple = Annotated[tuple[float, float, float], _several("R,G,B", _finite, lambda value: f"{value:g}", 3)]
"""Three numbers, one per colour."""
Pairs = Annotated[dict[str, Any], _one("NAME=VALUE,...", _pairs, _pairs_text)]
"""Names with values that are whole numbers, numbers, sizes (HEIGHTxWIDTH), true or false."""
Seconds = Annotated[float, _one("SECONDS", _seconds, lambda value: f"{value:g}")]
"""A time from 0."""
Choices = Annotated[dict[str, str], _one("NAME=CHOICE,...", _choices, _pairs_text)]
"""Names with one of several choices each."""
Share = Annotated[tuple[int, int], _one("K/N", _share, lambda share: f"{share[0]}/{share[1]}")]
"""Part K of N, K from 1 on."""
Precisions = Annotated[tuple[str, ...], _several("PRECISION,...", _text)]
"""Precisions such as fp16 and fp32."""
Backends = Annotated[tuple[str, ...], _several("BACKEND,...", _text)]
"""Names of backends."""
Workers = Annotated[int | Literal["auto"], _one("N|auto", _workers)]
"""Processes that read or make samples; 0 is in this process. See `resolve_workers`."""
Count = Annotated[int, _one("N", _positive)]
"""A number from 1."""
Limit = Annotated[int | None, _one("N", _positive)]
"""At most this many; None is no limit."""
Place = Annotated[Path | str, _one("PATH|ADDRESS", _place)]
"""A local path, or an address such as s3://bucket/folder, which stays text: a `Path` would lose one of its slashes."""
Json = Annotated[bool, tyro.conf.arg(help="Print the result as JSON on standard output, and nothing else.")]
"""A flag."""
Verbose = Annotated[bool, tyro.conf.arg(aliases=["-v"], help="Also say why each preferred backend was not taken.")]
"""A flag."""
