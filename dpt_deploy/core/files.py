"""Atomic file writes and hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import BadInput


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path next to `path` and rename it to `path` if the block succeeds.

    If the block raises, the temporary file is removed and `path` is unchanged. An `OSError`, such as a
    full disk, becomes a `BadInput` that names the file.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        # A folder, because a writer may add files, such as ONNX external data.
        temporary = folder / path.name
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def cannot_write(path: Path | str, error: BaseException) -> BadInput:
    """The error for a failed write, with the system's reason from `error`."""
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return BadInput(f"cannot write {path}: {reason}. Free disk space or choose another output folder, then run again.")


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, indented by two spaces, without sorting keys."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing_file(path: Path | str, what: str) -> Path:
    """Return `path` if it is a file, else raise `BadInput`. `what` describes the expected file."""
    path = Path(path)
    if path.is_dir():
        raise BadInput(f"expected {what}, received the folder {path}. Pass a file.")
    if not path.is_file():
        raise BadInput(f"expected {what}, but there is no file {path}. Check the path.")
    return path
