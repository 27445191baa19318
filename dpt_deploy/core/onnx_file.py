"""Read what an ONNX file says about itself: its metadata, and the external files that hold its weights.

The runtime needs both to check a bundle, and its base install has no onnx package. This reader walks the protobuf
encoding of a memory-mapped file and skips all weights. It accepts less than protobuf does: what it cannot read, such as
groups, is refused.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_FIELDS = 5_000_000  # a graph of a ViT-L has 100,000
MAX_ENTRY = 1 << 20  # [bytes] of metadata, such as the contract with 3 kB
NOT_PROTOBUF = "it is not a protobuf message, or truncated"
# The fields that lead to tensors and metadata, by message of onnx.proto. All others are skipped.
_NESTED: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 14: "metadata", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {5: "TensorProto", 6: "GraphProto", 10: "TensorProto", 11: "GraphProto",
                       22: "SparseTensorProto", 23: "SparseTensorProto"},
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "TensorProto": {13: "external data"},
}


@dataclass(frozen=True)
class OnnxFile:
    """What an ONNX file says about itself."""

    metadata: dict[str, str]
    """The graph's metadata, such as its contract."""
    external: tuple[str, ...]
    """Every external file that a tensor names, sorted, as written in the file. They need not exist."""


def read_onnx_file(path: Path) -> OnnxFile:
    """Read the metadata and the names of the external files. Raises `ValueError` if `path` is not a valid ONNX file."""
    with open(path, "rb") as file:
        if not file.seek(0, 2):
            raise ValueError("it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _read(content)


def _read(content: mmap.mmap) -> OnnxFile:
    metadata: dict[str, str] = {}
    external: set[str] = set()
    budget = MAX_FIELDS
    pending = [("ModelProto", 0, len(content))]
    while pending:
        message, start, end = pending.pop()
        nested = _NESTED[message]
        for number, begin, stop in _fields(content, start, end):
            budget -= 1
            if budget < 0:
                raise ValueError(f"it has more than {MAX_FIELDS} fields")
            kind = nested.get(number)
            if kind == "metadata":
                key, value = _entry(content, begin, stop)
                if metadata.setdefault(key, value) != value:
                    raise ValueError(f"its metadata has two values for {key!r}")
            elif kind == "external data":
                key, value = _entry(content, begin, stop)
                if key == "location":
                    external.add(value)
            elif kind is not None:
                pending.append((kind, begin, stop))
    return OnnxFile(metadata, tuple(sorted(external)))


def _fields(content: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """The number, start and end of each field of a message; the number is 0 if the field holds a number."""
    while position < end:
        tag, start = _varint(content, position, end)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, position = _varint(content, start, end)
        elif wire_type == 2:
            size, start = _varint(content, start, end)
            position = start + size
        elif wire_type in (1, 5):
            position = start + (8 if wire_type == 1 else 4)
        else:
            raise ValueError(NOT_PROTOBUF)
        if position > end or number == 0:
            raise ValueError(NOT_PROTOBUF)
        yield number if wire_type == 2 else 0, start, position


def _varint(content: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """A number and the position behind it."""
    value = shift = 0
    while position < end and shift < 70:
        byte = content[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
    raise ValueError(NOT_PROTOBUF)


def _entry(content: mmap.mmap, start: int, end: int) -> tuple[str, str]:
    """The key and value of a StringStringEntryProto."""
    if end - start > MAX_ENTRY:
        raise ValueError(f"an entry has more than {MAX_ENTRY} bytes")
    texts = {1: "", 2: ""}
    for number, begin, stop in _fields(content, start, end):
        if number in texts:
            texts[number] = content[begin:stop].decode()
    return texts[1], texts[2]
