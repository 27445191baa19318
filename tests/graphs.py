"""ONNX files of a few bytes, encoded by hand: what a bundle reads of a graph, without a graph."""

from __future__ import annotations

import json

from dpt_deploy.core.contract import Contract


def field(number: int, payload: bytes) -> bytes:
    """A field of a protobuf message that holds bytes."""
    size, length = b"", len(payload)
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    tag = number << 3 | 2
    return (bytes([tag]) if tag < 128 else bytes([tag & 127 | 128, tag >> 7])) + size + bytes([length]) + payload


def entry(key: str, value: str) -> bytes:
    """A StringStringEntryProto."""
    return field(1, key.encode()) + field(2, value.encode())


def tensor(location: str | None = None) -> bytes:
    """A TensorProto, whose values are in the external file `location`."""
    return field(8, b"w") + (field(13, entry("location", location)) if location is not None else field(9, b"values"))


def model(contract: Contract | str | None, graph: bytes = b"", **metadata: str) -> bytes:
    """A ModelProto with an embedded contract, given as such or as text, and a GraphProto."""
    if contract is not None:
        metadata["contract"] = contract if isinstance(contract, str) else json.dumps(contract.to_json())
    return field(7, graph) + b"".join(field(14, entry(key, value)) for key, value in metadata.items())
