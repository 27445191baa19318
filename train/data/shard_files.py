"""Samples at training size as the members of a tar, and the record of a set of shards.

    0000000.rgb.npy       uint8 (H, W, 3)
    0000000.depth.npy     float16 (H, W) [m]
    0000000.normals.npy   float16 (H, W, 3)
    0000000.alpha.npy     uint8 (H, W)
    0000000.sample.json   kind, intrinsics, content box, CRC-32 of the four, resize rule, the source's fingerprint
    shards.json           beside the shards: whether the set is whole, how many samples, what it was made from
"""

from __future__ import annotations

import functools
import io
import json
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpt_deploy.core import places, tar_index
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import write_json
from dpt_deploy.core.shard_writer import ShardWriter

from ..commands import command
from .cache import STORED, content_box, in_float32, inside_of, stored
from .sample import Sample

FORMAT = 1
RECORD = "shards.json"
MEMBERS = (*(f"{name}.npy" for name in STORED), "sample.json")


@dataclass(frozen=True)
class Header:
    """What the prepared samples of a set have in common."""

    input_size: tuple[int, int]
    resize: str
    source: str
    """Fingerprint of what they were made from."""


def packed(sample: Sample, contract: Contract, source: str) -> dict[str, bytes]:
    """A sample of the contract's input size as members: suffix -> content. `source` is a fingerprint."""
    maps = stored(sample)
    members, checksum = {}, 0
    for name, values in maps.items():
        members[f"{name}.npy"] = _npy_header(values.dtype.str, values.shape) + values.tobytes()
        checksum = zlib.crc32(members[f"{name}.npy"], checksum)
    record = {"format": FORMAT, "kind": sample.kind, "intrinsics": sample.intrinsics.tolist(),
              "box": content_box(sample), "crc32": checksum, "input_size": list(contract.input_size),
              "resize": contract.resize, "source": source}
    return members | {"sample.json": json.dumps(record).encode()}


@functools.cache
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def header(index: tar_index.TarIndex, members: Sequence[int]) -> Header:
    """What a set has in common, from one of its samples. Raises `BadInput` if this one cannot be read."""
    record = _record(places.shown(index.place), index.read([members[-1]])[0])
    try:
        return Header(tuple(record["input_size"]), str(record["resize"]), str(record["source"]))
    except (KeyError, TypeError) as error:
        raise _damaged(places.shown(index.place), f"sample.json has no valid {error}") from error


def unpacked(name: str, place: str, members: Sequence[bytes | memoryview], common: Header) -> Sample:
    """The sample of its members, in the order of `MEMBERS`.

    Raises:
        BadInput: A checksum differs, a map has another type or size, or the sample was prepared in another way than
            `common`.
    """
    where = f"{places.shown(place)}: sample {name}"
    record = _record(where, members[-1])
    h, w = common.input_size
    if record.get("input_size") != [h, w] or record.get("resize") != common.resize:
        raise BadInput(f"{where}: expected a sample prepared as {h}x{w}, {common.resize}, received "
                       f"{record.get('input_size')}, {record.get('resize')}. Prepare all shards in the same way.")
    maps, checksum = {}, 0
    for (map_name, (dtype, channels)), data in zip(STORED.items(), members, strict=False):
        shape = (h, w, channels) if channels else (h, w)
        start = _npy_header(np.dtype(dtype).str, shape)
        checksum = zlib.crc32(data, checksum)
        length = len(start) + math.prod(shape) * np.dtype(dtype).itemsize
        if len(data) != length or bytes(data[: len(start)]) != start:
            raise _damaged(where, f"{map_name}.npy is not {np.dtype(dtype).name} of {'x'.join(map(str, shape))}")
        maps[map_name] = np.frombuffer(data, dtype, offset=len(start)).reshape(shape)
    maps["rgb"].flags.writeable = False  # it may be the memory of the shard itself
    if checksum != record.get("crc32"):
        raise _damaged(where, "its checksum differs")
    try:
        intrinsics, box, kind = np.array(record["intrinsics"], np.float64), record["box"], str(record["kind"])
        if intrinsics.shape != (3, 3):
            raise ValueError("intrinsics")
        inside = inside_of(tuple(map(int, box)), common.input_size)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(where, f"sample.json has no valid {error}") from error
    return Sample(name, kind, maps["rgb"], in_float32(maps["depth"]), in_float32(maps["normals"]),
                  maps["alpha"] / np.float32(255), intrinsics, inside)


def _record(where: str, data: bytes | memoryview) -> dict[str, Any]:
    try:
        record = json.loads(bytes(data))
        if record["format"] != FORMAT:
            raise BadInput(f"{where}: expected shards of format {FORMAT}, received {record['format']}. {_again()}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise _damaged(where, "its sample.json cannot be read") from error
    return record


def _damaged(where: str, what: str) -> BadInput:
    return BadInput(f"{where} is damaged ({what}). Fetch the shard again, or make it again.")


def _again() -> str:
    return f"Make them again: {command('train.prepare')} --shards --data-root DIR --out SHARDS"


def write_shards(
    folder: Path, samples: Iterable[tuple[str, dict[str, bytes | memoryview]]], source: str, most_bytes: int
) -> tuple[int, int]:
    """Write samples, given as name and members, to shards, with a record that tells when the set is whole.

    Returns:
        How many samples and shards were written.

    Raises:
        BadInput: The folder holds a whole set of shards, or tars of someone else, or cannot be written.
    """
    folder = Path(folder)
    record = read_record(str(folder))
    present = sorted(folder.glob(f"*{tar_index.SUFFIX}")) if folder.is_dir() else []
    if present and (record is None or record.get("whole")):
        raise BadInput(f"{folder} holds {len(present)} tars already, such as {present[0].name}. Give another --out, or "
                       "delete them.")
    write_json(folder / RECORD, {"format": FORMAT, "whole": False})
    for path in present:  # of a run that was interrupted
        path.unlink()
        path.with_name(f"{path.name}{tar_index.INDEX_SUFFIX}").unlink(missing_ok=True)
    count = 0
    with ShardWriter(folder, most_bytes=most_bytes) as writer:
        for name, members in samples:
            writer.add(name, members)
            count += 1
    write_json(folder / RECORD, {"format": FORMAT, "whole": True, "samples": count, "source": source,
                                 "shards": [path.name for path in writer.paths]})
    return count, len(writer.paths)


def read_record(folder: str) -> dict[str, Any] | None:
    """The record of a set of shards in a local folder; None without one. Raises `BadInput` if it cannot be read."""
    path = Path(folder) / RECORD
    if places.is_address(folder) or not path.is_file():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError("not an object")
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: expected the record of a set of shards, but it cannot be read ({error}). {_again()}") \
            from error
    return record


def check_whole(root: str) -> None:
    """Raise `BadInput` if `root` is a folder of shards whose writing was interrupted, or that lacks some."""
    record = read_record(root)
    if record is None:
        return
    if not record.get("whole"):
        raise BadInput(f"{root}: the writing of these shards was interrupted. {_again()}")
    missing = [name for name in record.get("shards", ()) if not (Path(root) / name).is_file()]
    if missing:
        raise BadInput(f"{root}: expected {len(record['shards'])} shards, but {len(missing)} are missing, such as "
                       f"{missing[0]}. Fetch them again. {_again()}")

