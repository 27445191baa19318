"""Read the arrays of a `reference.npz`. Nothing is allocated before its size is known to fit the file.

`numpy.load` allocates what a header declares, so a damaged or hostile file of a few bytes can ask for terabytes.
"""

from __future__ import annotations

import math
import struct
import tokenize
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

MAX_BYTES = 16 << 30
"""The largest `reference.npz` that is read. Eight photographs of 24 megapixels need about 5 GB."""
MAX_ARRAYS = 10_000
MAX_HEADER = 4096  # of an array [characters]
CHUNK = 1 << 20
DTYPES = ("uint8", "float32", "bool")
ERRORS = (OSError, ValueError, EOFError, RuntimeError, NotImplementedError, RecursionError, MemoryError,
          SyntaxError, OverflowError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error)
"""What zipfile and numpy raise for files that are not valid."""


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an `.npz` file that `numpy.savez` wrote, by name.

    The memory needed is the size of the file: entries must be stored without compression, and an array must have
    exactly the bytes that its header declares.

    Raises:
        ValueError: The file is not such a file, with the reason.
    """
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise ValueError(f"it has {size} bytes, more than {MAX_BYTES}")
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > MAX_ARRAYS or len({entry.filename for entry in entries}) < len(entries):
                raise ValueError(f"it has more than {MAX_ARRAYS} arrays, or two of one name")
            # Entries may overlap in a hostile archive, so each could fit the file and their sum not.
            if sum(entry.file_size for entry in entries) > size:
                raise ValueError(f"its arrays need more than the {size} bytes of the file")
            return {entry.filename.removesuffix(".npy"): _read_array(archive, entry) for entry in entries}
    except ERRORS as error:
        raise ValueError(f"{str(error)[:200] or type(error).__name__}") from error


def _read_array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> np.ndarray:
    """One array, whose declared size was compared with the entry's before allocating."""
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{entry.filename!r:.100} is compressed")
    with archive.open(entry) as file:
        version = np.lib.format.read_magic(file)
        if version != (1, 0):
            raise ValueError(f"{entry.filename!r:.100} has the array format {version}, expected (1, 0)")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=MAX_HEADER)
            except UserWarning as error:  # such as numbers of Python 2
                raise ValueError(f"{entry.filename!r:.100} has a header that NumPy does not write") from error
        if dtype.name not in DTYPES and dtype.kind != "U":
            raise ValueError(f"{entry.filename!r:.100} has dtype {dtype.name:.50}, expected {', '.join(DTYPES)}, text")
        if any(length < 0 for length in shape):
            raise ValueError(f"{entry.filename!r:.100} has the shape {shape!r:.100}")
        count = math.prod(shape) * dtype.itemsize
        if count != entry.file_size - file.tell():
            raise ValueError(f"{entry.filename!r:.100} declares {dtype.name:.50} {list(shape)!r:.100}, which are not "
                             f"the {entry.file_size - file.tell()} bytes that it has")
        data = _read_exactly(file, count)
    array = np.frombuffer(data, dtype) if count else np.empty(0, dtype)
    return array.reshape(shape[::-1]).T if fortran else array.reshape(shape)


def _read_exactly(file: IO[bytes], count: int) -> bytearray:
    """`count` bytes and the end of an entry, where its CRC is compared."""
    data = bytearray(count)
    view, done = memoryview(data), 0
    while piece := file.read(CHUNK):
        if done + len(piece) > count:
            raise ValueError("an array has more bytes than it declares")
        view[done : done + len(piece)] = piece
        done += len(piece)
    if done < count:
        raise ValueError("the file is truncated")
    return data
