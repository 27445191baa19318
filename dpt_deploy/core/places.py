"""Local files and addresses such as s3://bucket/key through the same few functions.

A *place* is text: a local path, or an address with a protocol that fsspec knows (s3://, gs://, http://, memory://,
file://, ...). fsspec is imported for addresses only. Credentials come from the environment, as each protocol's package
documents it; messages never show a password or the query of an address.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
import time
import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

from .errors import BadInput, MissingPackage, first_line, missing_package
from .install import install_command, other_packages_command

Result = TypeVar("Result")
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
_BAD_PORT = re.compile(r":(?!\d*$)[^\]]*$")  # what follows the colon is a password then; the last one of an IPv6 host
_WEB = ("http", "https")
_LOCAL = ("file", "local")
_PACKAGES = {"http": "aiohttp", "https": "aiohttp", "sftp": "paramiko", "ssh": "paramiko",
             "hdfs": "pyarrow", "smb": "smbprotocol"}
"""Packages of protocols whose class does not stand in a package of its own."""
ATTEMPTS = 3
"""How often a request is made that fails for a reason that may pass."""
_FINAL = (PermissionError, NotImplementedError, IsADirectoryError, NotADirectoryError, ValueError, TypeError,
          LookupError)
_PAUSE = 0.5  # seconds before the second attempt; doubled before the third
_BLOCK = 1 << 20  # bytes that a remote file is read ahead by


class Entry(NamedTuple):
    """One thing in a folder."""

    name: str
    """Without its folder."""
    place: str
    is_folder: bool
    size: int | None
    """Bytes; None for folders, and where the listing does not tell."""


class Stamp(NamedTuple):
    """What changes when a file is written again."""

    size: int | None
    version: str
    """The time of change or the ETag; "" where the protocol tells neither."""


def is_address(place: str) -> bool:
    """Whether `place` has a protocol."""
    return _ADDRESS.match(place) is not None


def normalized(place: str | os.PathLike[str]) -> str:
    """The place as text: file:// addresses as local paths, protocols in lower case."""
    place = os.fspath(place)
    found = _ADDRESS.match(place)
    if found and found[1].lower() in _LOCAL:
        return urllib.parse.unquote(place[found.end():])
    return f"{found[0].lower()}{place[found.end():]}" if found else place


def shown(place: str) -> str:
    """`place` for messages: without user, password, query and fragment of an address."""
    if place.startswith("@"):  # the mark of a list
        return f"@{shown(place[1:])}"
    if (found := _ADDRESS.match(place)) is None:
        return place
    start, rest = found[0], place[found.end():]
    server = re.match(r"[^/?#]*", rest)[0]
    if "@" not in server and "@" in rest and (_BAD_PORT.search(server) or "@" in rest.partition("/")[0]):
        return f"{start}..."  # a password may have any of /?#
    _, at, host = server.rpartition("@")
    return without_query(f"{start}{'...@' if at else ''}{host}{rest[len(server):]}")


def without_query(place: str) -> str:
    """An address without its query and, on the web, its fragment; a local path as it is."""
    if not is_address(place):
        return place
    return re.sub(r"[?#].*" if _is_web(place) else r"\?.*", "", place, flags=re.DOTALL)


def identity(place: str) -> str:
    """What two places have in common if and only if they are one file: the whole path, or the address without user."""
    if not is_address(place):
        return os.path.abspath(place)
    place = re.sub(r"://[^/?#]*@", "://", place, count=1)
    return place.partition("#")[0] if _is_web(place) else place


def base_name(place: str) -> str:
    """The last component of a place, as people write it."""
    if _is_web(place):
        return urllib.parse.unquote(urllib.parse.urlsplit(place).path.rstrip("/").rpartition("/")[2])
    return place.rstrip("/").rpartition("/")[2]


def with_suffix(place: str, suffix: str) -> str:
    """The place of a file whose name is longer by `suffix`. The query of a web address stays at its end."""
    end = re.search(r"[?#]", place) if _is_web(place) else None
    at = end.start() if end else len(place)
    return f"{place[:at]}{suffix}{place[at:]}"


def sibling(place: str, name: str) -> str:
    """The place of `name` in the folder of a file. The query of a web address stays, unless `name` has one itself."""
    query = re.search(r"\?[^#]*", place) if _is_web(place) else None
    head, slash, _ = (place[: query.start()] if query else place).rpartition("/")
    return f"{head}{slash}{name}{query[0] if query and '?' not in name else ''}"


def path_of(address: str) -> str:
    """The path of an address, with its server or bucket: without protocol, user, query and fragment."""
    path = _ADDRESS.sub("", without_query(address), count=1)
    server, slash, rest = path.partition("/")
    return f"{server.rpartition('@')[2]}{slash}{urllib.parse.unquote(rest) if _is_web(address) else rest}"


def joined(folder: str, name: str) -> str:
    """The place of `name` in a folder."""
    return f"{folder.rstrip('/')}/{name}" if folder.rstrip("/") else f"{folder}{name}"


def kind(place: str) -> Literal["file", "folder"] | None:
    """What is at `place`; None for nothing. On a web server, a folder's address ends with a slash.

    Raises:
        BadInput: An address cannot be asked.
        MissingPackage: The package of its protocol is not installed.
    """
    if not is_address(place):
        return "folder" if os.path.isdir(place) else "file" if os.path.exists(place) else None
    if _is_web(place) and place.endswith("/"):
        return "folder"
    try:
        found = _ask(place, lambda system, path: system.info(path))
    except FileNotFoundError:
        return None
    return "folder" if found.get("type") == "directory" else "file"


def entries(folder: str) -> list[Entry]:
    """What is in a folder, in the order of the paths below it. Raises `BadInput` if it cannot be listed."""
    if is_address(folder):
        found = _remote_entries(folder)
    else:
        try:
            with os.scandir(folder or ".") as scanned:
                found = [Entry(one.name, joined(folder, one.name) if folder else one.name, one.is_dir(), None)
                         for one in scanned]
        except OSError as error:
            raise BadInput(f"{folder} cannot be listed: {error.strerror}. Check the path and its permissions.") \
                from error
    return sorted(found, key=lambda one: f"{one.name}/" if one.is_folder else one.name)


def _remote_entries(folder: str) -> list[Entry]:
    try:
        listed = _ask(folder, lambda system, path: system.ls(path, detail=True))
    except FileNotFoundError as error:
        raise BadInput(f"{shown(folder)}: expected a folder, but there is none. Check the address.") from error
    found = []
    for one in listed:
        full = str(one["name"])
        web = is_address(full)
        name = base_name(full) if web else full.rstrip("/").rpartition("/")[2]
        if not name or "?" in full or full.strip("/") == _ADDRESS.sub("", folder).strip("/"):
            continue  # a web page's links that sort it, and the mark of an empty folder in a bucket
        is_folder = one.get("type") == "directory"
        found.append(Entry(name, full if web else joined(folder, name), is_folder,
                           None if is_folder else one.get("size")))
    return found


def stamp(place: str) -> Stamp:
    """Size and version of a file. Raises `BadInput` if there is none."""
    if not is_address(place):
        try:
            found = os.stat(place)
        except (OSError, ValueError) as error:
            raise unreadable(place, error) from error
        return Stamp(found.st_size, str(found.st_mtime_ns))
    try:
        info = _ask(place, lambda system, path: system.info(path))
    except FileNotFoundError as error:
        raise unreadable(place, error) from error
    version = next((str(info[key]) for key in ("ETag", "etag", "md5Hash", "LastModified", "mtime", "updated", "created")
                    if info.get(key)), "")
    return Stamp(info.get("size"), version)


def read(place: str, start: int = 0, length: int | None = None) -> bytes:
    """The bytes of a file from `start` on; without `length`, to its end.

    Raises:
        BadInput: It does not exist, cannot be read, or is shorter than that.
        MissingPackage: The package of its protocol is not installed.
    """
    try:
        if is_address(place):
            data = _read_remote(place, start, length)
        elif length is None:
            with open(place, "rb") as file:
                file.seek(start)
                return file.read()
        else:
            data = _read_range(place, start, length)
    except (OSError, ValueError) as error:
        raise unreadable(place, error) from error
    if length is not None and len(data) != length:
        raise BadInput(f"{shown(place)}: expected {length} bytes from byte {start} on, received {len(data)}. The file "
                       "has changed or is truncated: fetch it again.")
    return data


def _read_range(place: str, start: int, length: int) -> bytes:
    descriptor = os.open(place, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        if length > os.fstat(descriptor).st_size - start:
            return b""  # a size that a damaged index tells must not become memory
        data = os.pread(descriptor, length, start)
        while 0 < len(data) < length and (more := os.pread(descriptor, length - len(data), start + len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def _read_remote(place: str, start: int, length: int | None) -> bytes:
    end = None if length is None else start + length
    whole = start == 0 and length is None
    data = _ask(place, lambda system, path: system.cat_file(path) if whole else system.cat_file(path, start, end))
    if length is not None and len(data) > length:  # a web server that does not know of ranges sends everything
        return data[start:end]
    return data


@contextlib.contextmanager
def opened(place: str) -> Any:
    """A context with a file open for reading that can seek; what cannot is fetched into a temporary file first.

    Raises `BadInput` if it cannot be opened, `MissingPackage` if the package of its protocol is not installed. What
    fails later, such as a connection that is cut, is an `OSError` of the file's methods: see `unreadable`.
    """
    with contextlib.ExitStack() as stack:
        try:
            if is_address(place):
                remote = stack.enter_context(_ask(place, lambda system, path: system.open(
                    path, "rb", block_size=_BLOCK, cache_type="readahead")))
                file = stack.enter_context(io.BufferedReader(_RemoteFile(remote)))
                if not remote.seekable() or getattr(remote, "size", 0) is None:
                    file = stack.enter_context(_fetched(file))
            else:
                file = stack.enter_context(open(place, "rb"))
        except (OSError, ValueError) as error:
            raise unreadable(place, error) from error
        yield file


class _RemoteFile(io.RawIOBase):
    """A file of fsspec. Reads are tried again; what its package raises in the end becomes an `OSError`."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self._file.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._file.seek(offset, whence)
        return self._file.tell()

    def tell(self) -> int:
        return self._file.tell()

    def readinto(self, buffer: memoryview) -> int:
        attempts, at = (ATTEMPTS, self.tell()) if self.seekable() else (1, 0)
        for attempt in range(attempts):
            try:
                data = self._file.read(len(buffer))
                break
            except Exception as error:  # each package has its own errors
                if attempt == attempts - 1 or isinstance(error, _FINAL):
                    raise OSError(_reason(error)) from error
                time.sleep(_PAUSE * 2**attempt)
                self._file.seek(at)
        buffer[: len(data)] = data
        return len(data)


@contextlib.contextmanager
def _fetched(stream: Any) -> Any:
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(stream, copy, _BLOCK)
        copy.seek(0)
        yield copy


def unreadable(place: str, error: OSError | ValueError) -> BadInput:
    """The error for a file that cannot be read. A path with a zero byte is a `ValueError`."""
    if isinstance(error, FileNotFoundError):
        return BadInput(f"{shown(place)}: there is no such file. Check the path.")
    reason = getattr(error, "strerror", None) or first_line(error)
    return BadInput(f"{shown(place)} cannot be read: {reason}. Check its permissions and the connection.")


def _is_web(place: str) -> bool:
    return is_address(place) and _protocol(place) in _WEB


def _protocol(place: str) -> str:
    return _ADDRESS.match(place)[1].lower()


def _ask(place: str, request: Callable[[Any, str], Result]) -> Result:
    """`request(file system, path)` of an address; failures that may pass are tried again.

    Raises `FileNotFoundError`; `BadInput` for all other failures.
    """
    system, path = _file_system(place)
    for attempt in range(ATTEMPTS):
        try:
            return request(system, path)
        except FileNotFoundError:
            raise
        except Exception as error:  # each package has its own errors, and most are no OSError
            if attempt == ATTEMPTS - 1 or isinstance(error, _FINAL) or 400 <= getattr(error, "status", 0) < 500:
                raise _refused(place, error) from error
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError


def _refused(place: str, error: Exception) -> BadInput:
    return BadInput(f"{shown(place)} cannot be read: {_reason(error)}. Check the address, the credentials in the "
                    "environment and the connection.")


def _reason(error: Exception) -> str:
    """Type and first line of an error, without the secrets of addresses in it."""
    text = re.sub(r"[A-Za-z][A-Za-z0-9+.-]+://\S+", lambda found: shown(found[0]), first_line(error))
    return f"{type(error).__name__}: {text[:200]}"


def _file_system(place: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    protocol = _protocol(place)
    try:
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations
    except ImportError as error:
        raise missing_package("fsspec", "batch", f"read {protocol}:// addresses") from error
    try:
        return url_to_fs(place)
    except ImportError as error:
        entry = known_implementations.get(protocol, {})
        package = _PACKAGES.get(protocol) or entry.get("class", protocol).partition(".")[0]
        why = f"read {protocol}:// addresses"
        run = install_command("batch", "fsspec") if protocol in _WEB else other_packages_command(package)
        raise MissingPackage(f"{package} is needed to {why} and is not installed. Run: {run}") from error
    except ValueError as error:
        raise BadInput(f"{shown(place)}: expected a local path or an address that fsspec knows, such as s3://, gs://, "
                       f"https:// or memory://, received the protocol {protocol}://.") from error
    except Exception as error:  # such as credentials that the package refuses
        raise _refused(place, error) from error


def local(place: str) -> Path | None:
    """The local file of a place; None for an address."""
    return None if is_address(place) else Path(place)
