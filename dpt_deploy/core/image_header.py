"""What an image file says of itself, read from its first bytes: format, size, and why it cannot be used.

Only the header is read, so that a picture too large for the memory is refused before it is decoded.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

_TO_PNG = "Convert it to PNG or JPEG"
_TONE_MAP = "it holds light, which has no largest value. Tone-map it to an 8-bit PNG"
_UNUSABLE = (
    (rb"\x76\x2f\x31\x01", "OpenEXR", _TONE_MAP),
    (rb"#\?(RADIANCE|RGBE)", "Radiance HDR", _TONE_MAP),
    (rb"P[Ff][4]?\s", "PFM", _TONE_MAP),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "JPEG XL", f"OpenCV does not decode it. {_TO_PNG}, for example with djxl"),
    (rb"8BPS", "Photoshop", f"OpenCV does not decode it. {_TO_PNG}"),
    (rb"%PDF", "PDF", "it is a document. Export its pages as PNG"),
    (rb"\s*(<\?xml[^>]*>\s*)?<svg", "SVG", "it is a drawing. Render it to PNG"),
    (rb"(?i)\s*<(!doctype html|html)", "HTML", "it is a web page, not the image behind it. Download the image itself"),
    (rb"version https://git-lfs", "Git LFS pointer", "the image itself was not fetched. Run: git lfs pull"),
)
_DEVELOP = "only its small preview could be read. Develop it to JPEG or PNG"
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_FLOAT, _SIGNED = 3, 2  # TIFF's SampleFormat
_DNG = 50706  # a tag that only DNG files have
_MOST_BOXES = 10_000
_MOST_PNM = 1 << 16  # bytes of a PNM file in which its size has to be
_PNM_SIZE = re.compile(rb"P[1-6](?:\s|#[^\r\n]*[\r\n])+(\d+)\D(?:\s|#[^\r\n]*[\r\n])*(\d+)\D")


@dataclass(frozen=True)
class Header:
    """The header of an image file. Fields that it does not tell are None."""

    format: str | None = None
    """Such as "PNG"; None if the first bytes are those of no known format."""
    size: tuple[int, int] | None = None
    """Height and width [pixels] as stored, before any rotation."""
    unusable: str | None = None
    """Why such a file is no input, and what to do; a sentence without its full stop."""
    quarter_turns: int = 0
    """HEIF and AVIF: turn the decoded picture counter-clockwise this often, and then mirror it."""
    mirror: int | None = None
    """HEIF and AVIF: 0 exchanges top and bottom, 1 left and right."""


def read_header(path: Path) -> Header:
    """Read the header of a file. A damaged one gives an empty `Header`. Raises `OSError` if the file cannot be read."""
    with open(path, "rb") as file:
        return _any_header(file)


def header_of(data: bytes) -> Header:
    """The header of a file that is in memory. A damaged one gives an empty `Header`."""
    return _any_header(io.BytesIO(data))


def _any_header(file: BinaryIO) -> Header:
    try:
        return _header(file)
    except (struct.error, ValueError, LookupError, OverflowError, OSError):  # too short, or nonsense
        return Header()


def _header(file: BinaryIO) -> Header:
    head = file.read(512)
    for pattern, name, reason in _UNUSABLE:
        if re.match(pattern, head):
            return Header(name, unusable=reason)
    if head[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack_from(">II", head, 16)
        return Header("PNG", (height, width))
    if head[:3] == b"\xff\xd8\xff":
        return Header("JPEG", _jpeg_size(file))
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Header("WebP", _webp_size(head))
    if head[:4] == b"GIF8":
        width, height = struct.unpack_from("<HH", head, 6)
        return Header("GIF", (height, width))
    if head[:2] == b"BM":
        width, height = struct.unpack_from("<HH" if head[14] == 12 else "<ii", head, 18)
        return Header("BMP", (abs(height), abs(width)))
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(file, head)
    if head[4:8] == b"ftyp":
        return _heif(file, head)
    if head[:12] == b"\0\0\0\x0cjP  \r\n\x87\n" and (at := head.find(b"ihdr")) > 0:
        return Header("JPEG 2000", struct.unpack_from(">II", head, at + 4))
    if head[:4] == b"\xff\x4f\xff\x51":
        width, height, left, top = struct.unpack_from(">IIII", head, 8)
        return Header("JPEG 2000", (height - top, width - left))
    if head[:4] == b"\x59\xa6\x6a\x95":
        width, height = struct.unpack_from(">II", head, 4)
        return Header("Sun raster", (height, width))
    if re.match(rb"P[1-7]\s", head):
        return _pnm(head + file.read(_MOST_PNM - len(head)))
    return Header()


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    file.seek(2)
    for _ in range(_MOST_BOXES):
        marker = file.read(4)
        if len(marker) < 4 or marker[0] != 0xFF:
            return None
        if marker[1] == 0xFF:  # padding
            file.seek(-3, 1)
        elif 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            return struct.unpack_from(">HH", file.read(5), 1)
        else:
            file.seek(struct.unpack_from(">H", marker, 2)[0] - 2, 1)
    return None


def _pnm(head: bytes) -> Header:
    """PBM, PGM, PPM and PAM, whose headers may have comments of any length."""
    size = None
    if head[1:2] == b"7":
        text = re.split(rb"(?m)^\s*ENDHDR\s", re.sub(rb"(?m)^\s*#.*$", b"", head.replace(b"\r", b"\n")), maxsplit=1)[0]
        width, height = (re.findall(rb"\b" + name + rb"\s+(\d+)", text) for name in (b"WIDTH", b"HEIGHT"))
        if width and height:  # the largest, so that none in another line hides the real one
            size = max(map(int, height)), max(map(int, width))
    elif found := _PNM_SIZE.match(head):
        size = int(found[2]), int(found[1])
    if size is None and len(head) == _MOST_PNM:
        return Header("PNM", unusable=f"its first {_MOST_PNM >> 10} kB do not tell its size. {_TO_PNG}")
    return Header("PNM", size) if size else Header()


def _webp_size(head: bytes) -> tuple[int, int] | None:
    match head[12:16]:
        case b"VP8X":
            width, height = (1 + int.from_bytes(head[at : at + 3], "little") for at in (24, 27))
        case b"VP8L":
            bits = int.from_bytes(head[21:25], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        case b"VP8 ":
            width, height = (value & 0x3FFF for value in struct.unpack_from("<HH", head, 26))
        case _:
            return None
    return height, width


def _tiff(file: BinaryIO, head: bytes) -> Header:
    """The first page of a TIFF or BigTIFF."""
    order, big = "<" if head[:1] == b"I" else ">", b"+" in head[:4]
    (at,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    file.seek(at)
    (count,) = struct.unpack(order + ("Q" if big else "H"), file.read(8 if big else 2))
    entry = 20 if big else 12
    entries = file.read(entry * min(count, 4096))
    tags = {}
    for start in range(0, len(entries) - entry + 1, entry):
        tag, kind, number = struct.unpack_from(order + ("HHQ" if big else "HHI"), entries, start)
        code = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}.get(kind)
        if tag not in (254, 256, 257, 258, 339, _DNG) or code is None or tag in tags:  # the first counts
            continue
        place, room = start + (12 if big else 8), 8 if big else 4
        if struct.calcsize(code) * number <= room:
            (tags[tag],) = struct.unpack_from(order + code, entries, place)
        else:  # several values are elsewhere; the first stands for all
            file.seek(struct.unpack_from(order + ("Q" if big else "I"), entries, place)[0])
            (tags[tag],) = struct.unpack(order + code, file.read(struct.calcsize(code)))
    size, bits, kind = (tags[257], tags[256]) if {256, 257} <= tags.keys() else None, tags.get(258, 1), tags.get(339, 1)
    if _DNG in tags or tags.get(254, 0) & 1 or head[8:10] == b"CR":
        return Header("camera raw", size, _DEVELOP)
    reason = None
    if kind == _FLOAT:
        reason = (f"it holds {bits}-bit floating-point values, and nothing says which of them is white. Scale them to "
                  "0 to 255 and save them as 8 bits")
    elif kind == _SIGNED or bits > 16:
        reason = (f"it holds {'signed ' if kind == _SIGNED else ''}{bits}-bit integers. Scale them to 0 to 255 and "
                  "save them as 8 bits")
    return Header("TIFF", size, reason)


def _heif(file: BinaryIO, head: bytes) -> Header:
    """AVIF, and HEIC, which OpenCV does not decode. Size and rotation are properties of the primary item."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = [head[8:12], *(head[at : at + 4] for at in range(16, end, 4))]
    if b"avif" not in brands and b"avis" not in brands:
        if b"crx " in brands:
            return Header("camera raw", unusable=_DEVELOP)
        if any(brand in _HEIC for brand in brands):
            return Header("HEIC", unusable="OpenCV does not decode it. Convert it to JPEG: heif-convert IN.heic "
                                           "OUT.jpg, or set the phone's camera to \"Most Compatible\"")
        return Header("MP4 or MOV", unusable="it is a video")
    file.seek(0)
    boxes = dict(_boxes(file.read(1 << 20)))
    meta = dict(_boxes(boxes[b"meta"][4:]))
    (item,) = struct.unpack_from(">I" if meta[b"pitm"][0] else ">H", meta[b"pitm"], 4)
    groups = dict(_boxes(meta[b"iprp"]))
    properties = list(_boxes(groups[b"ipco"]))
    own = [properties[i - 1] for i in _associated(groups[b"ipma"], item) if 0 < i <= len(properties)]
    found = dict(reversed(own))
    width, height = struct.unpack_from(">II", found[b"ispe"], 4)
    turns = found[b"irot"][0] & 3 if found.get(b"irot") else 0
    return Header("AVIF", (height, width), None, turns, found[b"imir"][0] & 1 if found.get(b"imir") else None)


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The boxes of an ISO base media file, as (type, content)."""
    at = 0
    for _ in range(_MOST_BOXES):
        if at + 8 > len(data):
            return
        size, kind, start = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8], at + 8
        if size == 1:
            size, start = int.from_bytes(data[start : start + 8], "big"), start + 8
        end = len(data) if size == 0 else at + size
        if end < start:
            raise ValueError("a box that ends before it starts")
        yield kind, data[start:end]
        at = end


def _associated(ipma: bytes, item: int) -> list[int]:
    """Numbers of the properties of an item, from 1."""
    version, wide, at = ipma[0], ipma[3] & 1, 8
    for _ in range(min(int.from_bytes(ipma[4:8], "big"), _MOST_BOXES)):
        (found,) = struct.unpack_from(">I" if version else ">H", ipma, at)
        at += 4 if version else 2
        count, at = ipma[at], at + 1
        values = struct.unpack_from(">" + ("H" if wide else "B") * count, ipma, at)
        at += count * (2 if wide else 1)
        if found == item:
            return [value & (0x7FFF if wide else 0x7F) for value in values]
    return []
