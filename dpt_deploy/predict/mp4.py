"""Times and size of the frames in an MP4 file of one track, which OpenCV's writer cannot set (ISO/IEC 14496-12 and -2).

OpenCV gives every frame the same duration, and encodes even sizes only.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts")
TICKS = 10_000  # per second; 32 bits of them last for 119 hours
MOST_INDEX, MOST_BOXES = 1 << 28, 10_000  # bytes of the index; boxes before it
VIDEO_OBJECT_LAYER = b"\x00\x00\x01\x20"


def rewrite(path: Path, durations: Sequence[float] | None = None, size: tuple[int, int] | None = None) -> None:
    """Change the index of a file that `cv2.VideoWriter` wrote with MPEG-4 Part 2.

    Args:
        path: The file.
        durations: How long each frame is shown [ms]; None leaves the constant rate.
        size: Height and width to show, each at most one pixel less than encoded; None leaves the size.

    Raises:
        ValueError: The file is not laid out as OpenCV does it.
        OSError: The file cannot be written.
    """
    edits: dict[bytes, Callable[[bytes], bytes]] = {}
    if durations is not None:
        edits |= _timing(durations)
    if size is not None:
        edits |= {b"tkhd": lambda box: box[:-8] + struct.pack(">II", size[1] << 16, size[0] << 16),
                  b"stsd": lambda box: _resized(box, size)}
    with open(path, "r+b") as file:
        start, index = _index(file)
        if start + 8 + len(index) != file.seek(0, 2):
            raise ValueError("the index is not at the end of the file")
        file.seek(start)
        file.write(_box(b"moov", _rebuild(index, edits)))
        file.truncate()


def is_trimmed(path: Path) -> bool:
    """Whether an edit list of an MP4 or MOV file leaves frames out. False for files of other kinds."""
    try:
        with open(path, "rb") as file:
            index = _index(file)[1]
        rate = _timescale(next(payload for kind, payload in _boxes(index) if kind == b"mvhd"))[0]
        return any(_shortened(track, rate) for kind, track in _boxes(index) if kind == b"trak")
    except (OSError, ValueError, LookupError, RecursionError, struct.error, StopIteration):  # damaged
        return False


def _shortened(track: bytes, movie_rate: int) -> bool:
    boxes = dict(_flat(track))
    if b"elst" not in boxes:
        return False
    rate, duration = _timescale(boxes[b"mdhd"])
    entries = boxes[b"elst"]
    layout = struct.Struct(">QqI" if entries[0] else ">IiI")
    shown = sum(length for length, start, _ in layout.iter_unpack(entries[8:]) if start >= 0)
    return shown / max(movie_rate, 1) < duration / max(rate, 1) - 0.1


def _timing(durations: Sequence[float]) -> dict[bytes, Callable[[bytes], bytes]]:
    ends, ticks, elapsed = 0, [], 0.0
    if sum(durations) * TICKS / 1000 >= 1 << 32:
        raise ValueError(f"a video of more than {(1 << 32) / TICKS / 3600:.0f} hours whose frame rate varies")
    for duration in durations:  # rounded at the sum, so that errors do not add up
        elapsed += duration * TICKS / 1000
        ticks.append(max(1, round(elapsed) - ends))
        ends += ticks[-1]
    runs = [(len(list(run)), tick) for tick, run in groupby(ticks)]
    table = struct.pack(">II", 0, len(runs)) + b"".join(struct.pack(">II", *run) for run in runs)
    return {
        b"stts": lambda _: table,
        b"mvhd": lambda box: _with_duration(box, TICKS, ends),
        b"mdhd": lambda box: _with_duration(box, TICKS, ends),
        b"tkhd": lambda box: box[:20] + struct.pack(">I", ends) + box[24:],
        b"elst": lambda _: struct.pack(">IIIiI", 0, 1, ends, 0, 1 << 16),
    }


def _with_duration(box: bytes, rate: int, duration: int) -> bytes:
    if box[0]:
        raise ValueError("64-bit times")
    return box[:12] + struct.pack(">II", rate, duration) + box[20:]


def _timescale(box: bytes) -> tuple[int, int]:
    """Ticks per second and duration of a movie or media header."""
    return struct.unpack_from(">IQ", box, 20) if box[0] else struct.unpack_from(">II", box, 12)


def _resized(box: bytes, size: tuple[int, int]) -> bytes:
    """The sample description with another size, in the box and in the codec's own header."""
    start = box.find(VIDEO_OBJECT_LAYER)
    if start < 0 or box[12:16] != b"mp4v":
        raise ValueError("no header of MPEG-4 Part 2")
    header = box[start + 4 :]
    bits = int.from_bytes(header, "big")
    total = 8 * len(header)
    position = 0

    def take(count: int) -> int:
        nonlocal position
        position += count
        return bits >> (total - position) & ((1 << count) - 1)

    take(9)  # random access, type
    if take(1):
        take(7)  # version, priority
    if take(4) == 15:
        take(16)  # aspect ratio
    if take(1):
        take(3)  # chroma format, low delay
        if take(1):
            take(79)  # buffer
    if take(2):
        raise ValueError("not rectangular")
    take(1)
    resolution = take(16)
    take(1)
    if take(1):
        take(max(1, (resolution - 1).bit_length()))
    take(1)
    for value in (size[1], size[0]):
        encoded = take(13)
        if encoded - value not in (0, 1) or (encoded + 15) // 16 != (value + 15) // 16:
            raise ValueError(f"{encoded} pixels are encoded, not {value}")
        bits ^= (encoded ^ value) << (total - position)
        take(1)
    box = box[: start + 4] + bits.to_bytes(len(header), "big")
    return box[:40] + struct.pack(">HH", size[1], size[0]) + box[44:]


def _index(file: BinaryIO) -> tuple[int, bytes]:
    """Where the index of a file begins, and the boxes in it. Raises `ValueError` if there is none."""
    end = file.seek(0, 2)
    start = 0
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            break
        file.seek(start)
        length, kind = struct.unpack(">I4s", file.read(8))
        skip = 8
        if length == 1:
            length, skip = struct.unpack(">Q", file.read(8))[0], 16
        elif length == 0:
            length = end - start
        if length < skip:
            break
        if kind == b"moov":
            if length > MOST_INDEX:
                break
            return start, file.read(length - skip)
        start += length
    raise ValueError("no index")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    start = 0
    while start + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        if length < 8:
            raise ValueError("a box without a size")
        yield kind, data[start + 8 : start + length]
        start += length


def _flat(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for kind, payload in _boxes(data):
        if kind in CONTAINERS:
            yield from _flat(payload)
        else:
            yield kind, payload


def _rebuild(data: bytes, edits: Mapping[bytes, Callable[[bytes], bytes]]) -> bytes:
    parts = []
    for kind, payload in _boxes(data):
        if kind in CONTAINERS:
            payload = _rebuild(payload, edits)
        elif kind in edits:
            payload = edits[kind](payload)
        parts.append(_box(kind, payload))
    return b"".join(parts)


def _box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", len(payload) + 8, kind) + payload
