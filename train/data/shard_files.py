"""Samples at training size as the members of a tar, and the record of a set of shards.

    0000000.rgb.npy       uint8 (H, W, 3)
    0000000.depth.npy     float16 (H, W) [m]
    0000000.normals.npy   float16 (H, W, 3)
    0000000.alpha.npy     uint8 (H, W)
    0000000.sample.json   name, kind, intrinsics, content box, resize rule, the source's fingerprint, CRC-32 of all this
    shards.json           beside the shards: whether the set is whole, how many samples, what it was made from
"""

from __future__ import annotations

import functools
import io
import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dpt_deploy.core import places, tar_index
from dpt_deploy.core.contract import MAX_INPUT_SIZE, RESIZE_RULES, Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import cannot_write, locked, write_json
from dpt_deploy.core.shard_writer import ShardWriter

from ..commands import command
from .cache import STORED, content_box, in_float32, inside_of, stored
from .sample import Sample

FORMAT = 2
RECORD = "shards.json"
_OWN = re.compile(r"shard-\d{6,}\.tar")
"""Names of the shards that `write_shards` writes, and deletes after an interrupted run."""
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
    record = {"format": FORMAT, "name": sample.name, "kind": sample.kind, "intrinsics": sample.intrinsics.tolist(),
              "box": list(content_box(sample)), "input_size": list(contract.input_size), "resize": contract.resize,
              "source": source}
    return members | {"sample.json": json.dumps(record | {"crc32": _checksum(record, checksum)}).encode()}


def _checksum(record: dict[str, Any], of_maps: int) -> int:
    """CRC-32 of the four maps and of what sample.json says besides."""
    rest = {key: value for key, value in record.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode(), of_maps)


@functools.cache
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
    return file.getvalue()


def header(index: tar_index.TarIndex, members: Sequence[int]) -> Header:
    """What a set has in common, from one of its samples. Raises `BadInput` if this one cannot be read."""
    record = _record(places.shown(index.place), index.read([members[-1]])[0])
    size, resize, source = (record.get(key) for key in ("input_size", "resize", "source"))
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int for side in size)
            and all(1 <= side <= MAX_INPUT_SIZE for side in size)):
        raise _damaged(places.shown(index.place), "sample.json has no valid 'input_size'")
    if resize not in RESIZE_RULES:
        raise _damaged(places.shown(index.place), "sample.json has no valid 'resize'")
    return Header((size[0], size[1]), resize, str(source))


def unpacked(name: str, place: str, members: Sequence[bytes | memoryview], common: Header) -> Sample:
    """The sample of its members, in the order of `MEMBERS`.

    Raises:
        BadInput: A checksum differs, a map has another type or size, the members are those of another sample, or it was
            prepared in another way than `common`.
    """
    where = f"{places.shown(place)}: sample {name}"
    record = _record(where, members[-1])
    h, w = common.input_size
    if record.get("input_size") != [h, w] or record.get("resize") != common.resize:
        raise BadInput(f"{where}: expected a sample prepared as {h}x{w}, {common.resize}, received "
                       f"{str(record.get('input_size'))[:40]}, {str(record.get('resize'))[:40]}. Prepare all shards "
                       "in the same way.")
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
    if _checksum(record, checksum) != record.get("crc32"):
        raise _damaged(where, "its checksum differs")
    if record.get("name") != name:
        raise _damaged(where, f"its members are those of sample {str(record.get('name'))[:40]}")
    try:
        intrinsics, box, kind = np.array(record["intrinsics"], np.float64), record["box"], str(record["kind"])
        if intrinsics.shape != (3, 3) or not np.isfinite(intrinsics).all():
            raise ValueError("intrinsics")
        inside = inside_of(tuple(map(int, box)), common.input_size)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise _damaged(where, f"sample.json has no valid content: {str(error)[:80]}") from error
    return Sample(name, kind, maps["rgb"], in_float32(maps["depth"]), in_float32(maps["normals"]),
                  maps["alpha"] / np.float32(255), intrinsics, inside)


def _record(where: str, data: bytes | memoryview) -> dict[str, Any]:
    try:
        record = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise _damaged(where, "its sample.json cannot be read") from error
    if not isinstance(record, dict) or "format" not in record:
        raise _damaged(where, "its sample.json has no format")
    if record["format"] != FORMAT:
        raise BadInput(f"{where}: expected shards of format {FORMAT}, received {str(record['format'])[:40]}. "
                       f"{_again()}")
    return record


def _damaged(where: str, what: str) -> BadInput:
    return BadInput(f"{where} is damaged ({what}). Fetch the shard again, or make it again.")


def _again() -> str:
    return f"Or delete the folder and make them again: {_make()}"


def _make() -> str:
    return f"{command('train.prepare')} --shards --data-root DIR --out SHARDS"


def write_shards(
    folder: Path, samples: Iterable[tuple[str, dict[str, bytes | memoryview]]], source: str, most_bytes: int
) -> tuple[int, int]:
    """Write samples, given as name and members, to shards, with a record that tells when the set is whole.

    Returns:
        How many samples and shards were written.

    Raises:
        BadInput: The folder holds a whole set of shards, or tars of someone else, another process writes there, or it
            cannot be written.
    """
    folder = Path(folder)
    with locked(folder, create=True):
        record = read_record(str(folder / RECORD))
        present = tars_in(folder)
        if present and (record is None or record.get("whole")):
            raise BadInput(f"{folder} holds {len(present)} tars already, such as {present[0].name}. Give another "
                           "--out, or delete them.")
        if others := [path.name for path in present if not _OWN.fullmatch(path.name)]:
            raise BadInput(f"{folder}: expected the shards of an interrupted run, whose names are such as "
                           f"shard-000000.tar, received {others[0]} too. Move it to another folder, or give another "
                           "--out.")
        write_json(folder / RECORD, {"format": FORMAT, "whole": False})
        for path in present:  # of a run that was interrupted
            try:
                path.unlink()
                path.with_name(f"{path.name}{tar_index.INDEX_SUFFIX}").unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(path, error) from error
        count = 0
        with ShardWriter(folder, most_bytes=most_bytes) as writer:
            for name, members in samples:
                writer.add(name, members)
                count += 1
        write_json(folder / RECORD, {"format": FORMAT, "whole": True, "samples": count, "source": source,
                                     "shards": [path.name for path in writer.paths]})
    return count, len(writer.paths)


def tars_in(folder: Path) -> list[Path]:
    """The tar files of a local folder, sorted. Raises `BadInput` if it cannot be listed."""
    return [folder / one.name for one in places.entries(str(folder))
            if not one.is_folder and one.name.lower().endswith(tar_index.SUFFIX)]


def read_record(place: str) -> dict[str, Any] | None:
    """The record of a set of shards; None if there is none, or if a server does not let anyone see whether there is.

    Args:
        place: Of shards.json, local or an address.

    Raises:
        BadInput: It cannot be read.
    """
    try:
        data = places.read(place)
    except BadInput as error:
        cause = error.__cause__
        if isinstance(cause, FileNotFoundError | NotADirectoryError) or (
                places.is_address(place) and (isinstance(cause, PermissionError) or
                                              getattr(cause, "status", None) in (401, 403))):
            return None
        raise
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        record = None
    names = record.get("shards", []) if isinstance(record, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise BadInput(f"{places.shown(place)}: expected the record of a set of shards, but it is damaged. Fetch it "
                       f"again. {_again()}")
    return record


def check_whole(root: str, tars: Sequence[str]) -> None:
    """Raise `BadInput` if the writing of shards was interrupted, or if `root` is a folder of them that lacks some.

    Args:
        root: What stands for the shards: a folder, a tar, a pattern or a list, local or an address.
        tars: The shards.
    """
    root = places.normalized(root).rstrip("/")
    own = places.identity(places.joined(places.without_query(root), RECORD))
    found = dict.fromkeys(places.sibling(tar, RECORD) for tar in tars)
    if os.path.isdir(root):
        found[places.joined(root, RECORD)] = None
    for place in found:
        record = read_record(place) or {"whole": True}
        if not record.get("whole"):
            raise BadInput(f"{places.shown(root)}: the writing of these shards was interrupted. Go on: {_make()}")
        present = {places.base_name(tar) for tar in tars}
        missing = [name for name in record.get("shards", []) if name not in present]
        if missing and places.identity(places.without_query(place)) == own:
            raise BadInput(f"{places.shown(root)}: expected {len(record['shards'])} shards, but {len(missing)} "
                           f"{'is' if len(missing) == 1 else 'are'} missing, such as {missing[0]}. Fetch the set "
                           f"again. {_again()}")
