"""Atomic file writes and hashes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import BadInput

TEMPORARY = ".dpt-tmp"
"""Suffix of temporary folders. A later run deletes those of processes that were killed."""
_cleaned: set[Path] = set()


@contextlib.contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path next to `path` and rename it to `path` if the block succeeds.

    If the block raises, the temporary file is removed and `path` is unchanged. An `OSError`, such as a
    full disk, becomes a `BadInput` that names the file.
    """
    path = Path(path)
    # A folder, because a writer may add files, such as ONNX external data.
    with temporary_folder(path) as folder:
        try:
            yield folder / path.name
            os.replace(folder / path.name, path)
        except OSError as error:
            raise cannot_write(path, error) from error


@contextlib.contextmanager
def temporary_folder(path: Path | str) -> Iterator[Path]:
    """Yield a new folder next to `path`, which is deleted at the end, or by a later run if this process is killed.

    Raises `BadInput`, which names `path`, if it cannot be created.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_left_over(path.parent)
        folder, descriptor = _temporary_folder(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def locked(folder: Path | str, create: bool = False, wait: bool = False) -> Iterator[None]:
    """Hold the lock on writing to `folder`, so that two commands never mix their files.

    The lock is on the folder itself and leaves no file. The kernel releases it when the process ends, however it ends.
    File systems without locks are not guarded.

    Args:
        folder: The folder. Without `create`, a missing folder is not an error here.
        create: Create the folder, and remove it at the end if it is still empty.
        wait: Wait until no other process writes there, instead of raising.

    Raises:
        BadInput: Another process is writing there, or the folder cannot be created.
    """
    folder, created, descriptor = Path(folder), False, None
    while descriptor is None:
        missing = not os.path.exists(folder)  # Path.exists raises for a name that is too long
        if missing and create:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise cannot_write(folder, error) from error
            created = True
        elif not os.path.isdir(folder):
            yield
            return
        descriptor = _locked_folder(folder, wait)
    try:
        yield
    finally:
        if created:
            with contextlib.suppress(OSError):
                folder.rmdir()
        os.close(descriptor)


def _locked_folder(folder: Path, wait: bool) -> int | None:
    """The descriptor of a folder that this process has locked; None if the process before removed the folder."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise cannot_write(folder, error) from error
    try:
        if _lock(descriptor, wait) is False:
            raise BadInput(f"{folder}: another process is writing here. Wait until it ends, or use another folder.")
        with contextlib.suppress(FileNotFoundError):
            if (mine := os.fstat(descriptor)).st_nlink or os.path.samestat(mine, os.stat(folder)):
                return descriptor
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _lock(descriptor: int, wait: bool = False) -> bool | None:
    """Lock an open file or folder. False if another process holds the lock, None if there are no locks here."""
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return None
    return True


def _temporary_folder(path: Path) -> tuple[Path, int]:
    """A new locked folder next to `path`, and its descriptor."""
    while True:
        folder = tempfile.mkdtemp(prefix=f".{path.name}.", suffix=TEMPORARY, dir=path.parent)
        with contextlib.suppress(FileNotFoundError):  # another process took it for left over before it was locked
            descriptor = os.open(folder, os.O_RDONLY)
            _lock(descriptor, wait=True)
            if os.path.exists(folder):
                return Path(folder), descriptor
            os.close(descriptor)


def _remove_left_over(parent: Path) -> None:
    """Delete the temporary folders of killed processes, once per process and parent: those that nobody has locked."""
    if (parent := parent.resolve()) in _cleaned:
        return
    _cleaned.add(parent)
    with contextlib.suppress(OSError):
        for entry in os.scandir(parent):
            if entry.name.endswith(TEMPORARY) and entry.is_dir(follow_symlinks=False):
                descriptor = os.open(entry.path, os.O_RDONLY)
                if _lock(descriptor):
                    shutil.rmtree(entry.path, ignore_errors=True)
                os.close(descriptor)


def cannot_write(path: Path | str, error: BaseException) -> BadInput:
    """The error for a failed write: the system's reason from `error`, and the advice that fits this reason."""
    path, code = Path(path), getattr(error, "errno", None)
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    if code in (errno.ENOTDIR, errno.EEXIST) and (file := _file_among(path)):
        return BadInput(f"cannot write {path}: {file} is a file, and a folder is needed there. "
                        "Choose another output folder.")
    if code is None and (free := _free_bytes(path)) is not None and free < _FULL:
        code = errno.ENOSPC  # libraries such as OpenEXR and torch do not pass the system's reason on
        reason = f"{reason} (no space left on the disk)"
    return BadInput(f"cannot write {path}: {reason}. {_ADVICE.get(code, 'Choose another output folder.')}")


_FULL = 1 << 20  # bytes
_ADVICE = {
    errno.ENOSPC: "Free disk space or choose another output folder, then run again.",
    errno.EDQUOT: "Free space in your quota or choose another output folder, then run again.",
    errno.EFBIG: "The file system or a limit of the shell (ulimit -f) does not allow files this large. "
                 "Choose another output folder.",
    errno.EACCES: "You have no permission to write there. Change the permissions or choose another output folder.",
    errno.EPERM: "You have no permission to write there. Change the permissions or choose another output folder.",
    errno.EROFS: "The file system is mounted read-only. Choose another output folder.",
    errno.EISDIR: "A folder has the name of the file. Rename it or choose another output folder.",
    errno.ENOTEMPTY: "A folder has the name of the file. Rename it or choose another output folder.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EMFILE: "Too many files are open in this process. Raise the limit with ulimit -n, then run again.",
    errno.EIO: "The disk reports a fault. Choose another output folder.",
}


def unwritable(folder: Path | str) -> str | None:
    """Why no file can be created in a folder, by creating one; None if one can. The folder need not exist yet."""
    folder = Path(folder).absolute()
    while not os.path.exists(folder) and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return str(cannot_write(folder, error))


def _file_among(path: Path) -> Path | None:
    """The first of `path` and the folders above it that is a file."""
    return next((one for one in (*reversed(path.parents), path) if one.is_file()), None)


def _free_bytes(path: Path) -> int | None:
    try:
        return shutil.disk_usage(next(one for one in path.absolute().parents if one.is_dir())).free
    except (OSError, StopIteration):
        return None


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Write JSON atomically, indented by two spaces, without sorting keys."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def user_cache() -> Path | None:
    """The folder for what can be made again, of this user; None for a user without a home folder."""
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        # The specification ignores relative paths.
        return (root if root.is_absolute() else Path.home() / ".cache") / "dpt-deploy"
    except RuntimeError:
        return None


def sha256(path: Path | str) -> str:
    """SHA-256 of a file's content in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def existing_file(path: Path | str, what: str) -> Path:
    """Return `path` if it is a file, else raise `BadInput`. `what` describes the expected file."""
    path = Path(path)
    if os.path.isdir(path):
        raise BadInput(f"expected {what}, received the folder {path}. Pass a file.")
    if not os.path.isfile(path):  # also for names that are too long for the file system
        raise BadInput(f"expected {what}, but there is no file {path}. Check the path.")
    return path
