"""The journal of a large run: what each image came to, written as it happens, so that a killed run can go on.

A folder `_journal` in the output folder holds

    run.json            what the maps depend on: the checkpoint, the options, the sources
    part-00000.jsonl    one line for each image, of one process; each process writes a part of its own

and the lines are

    {"run": {...}}                                                                      the first: who writes it
    {"key": "a.jpg", "stem": "a", "size": [480, 640], "files": [["a.npz", 12345, 987654]]}   done: name, bytes, CRC-32
    {"key": "b.jpg", "failed": "why"}
    {"key": "c.jpg", "stem": "c", "size": [480, 640], "in": "maps-00000-000000.tar"}    done if its shard is
    {"shard": "maps-00000-000000.tar", "bytes": 12345, "crc": 987654}                   after the lines of its images
    {"begun": "a.jpg"}                                   it alone is under way, after an earlier process has died

An image is done if a line says so and its files are there in the sizes that the line gives. A shard gets its line
before it gets its name: one that was killed between the two is missing, and its images are predicted again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from ..core.errors import BadInput, first_line
from ..core.files import cannot_write, write_json
from ..core.hashes import Hashes, hashed

FOLDER = "_journal"
FORMAT = 1
_PART = re.compile(r"part-(\d{5,})(-\d+)?\.jsonl")
_BLOCK = 1 << 20


class Written(NamedTuple):
    """A file of results."""

    name: str
    """Below the output folder."""
    bytes: int
    crc: int
    """CRC-32 of its content."""


def written(out: Path, path: Path) -> Written:
    """A file that has just been written. Raises `BadInput` if it cannot be read back."""
    try:
        return Written(path.relative_to(out).as_posix(), path.stat().st_size, checksum(path))
    except OSError as error:
        raise cannot_write(path, error) from error


def checksum(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


class Part:
    """A file of lines, locked by the process that writes it. A context."""

    def __init__(self, path: Path, share: str) -> None:
        """Create the file, or go on with one whose process has died.

        Args:
            path: The file.
            share: The share of the run that this process has, such as "3/16".

        Raises:
            BadInput: The file cannot be written, or another process writes it.
        """
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise cannot_write(path, error) from error
        if not _lock(self._file):
            os.close(self._file)
            raise _busy(path)
        size = os.fstat(self._file).st_size
        # A process that was killed may have left half a line.
        line = {"run": {"share": share, "pid": os.getpid()}}
        self._write(("\n" if size and os.pread(self._file, 1, size - 1) != b"\n" else "") + json.dumps(line) + "\n")

    def done(self, key: str, stem: str, size: tuple[int, int], files: Iterable[Written], note: str = "") -> None:
        """An image is predicted, and its files are in place."""
        line = {"key": key, "stem": stem, "size": list(size), "files": [list(file) for file in files]}
        self._line(line | ({"note": note} if note else {}))

    def failed(self, key: str, reason: str) -> None:
        """An image cannot be predicted."""
        self._line({"key": key, "failed": reason})

    def begun(self, key: str) -> None:
        """An image is the only one under way."""
        self._line({"begun": key})

    def shard(self, file: Written, images: Iterable[Mapping[str, Any]]) -> None:
        """A shard is complete, and is about to get its name. `images` have key, stem and size."""
        lines = [json.dumps(dict(image) | {"in": file.name}) for image in images]
        lines.append(json.dumps({"shard": file.name, "bytes": file.bytes, "crc": file.crc}))
        self._write("\n".join(lines) + "\n")

    def _line(self, line: Mapping[str, Any]) -> None:
        self._write(json.dumps(line) + "\n")

    def _write(self, text: str) -> None:
        data = memoryview(text.encode("utf-8", "surrogateescape"))
        try:
            while data:
                data = data[os.write(self._file, data):]
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def close(self) -> None:
        """Close the file, which unlocks it."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass
class Done:
    """What a journal says is done, and is."""

    keys: Hashes = field(default_factory=Hashes)
    """Hashed keys of images."""
    stems: Hashes = field(default_factory=Hashes)
    """Hashed stem -> hashed key, also of images whose files are gone."""
    count: int = 0
    """Images."""

    def add(self, images: list[tuple[str, str]], holds: bool) -> None:
        """Note images by key and stem, and whether their files are as they were."""
        for key, stem in images:
            owner = hashed(key)
            self.stems.put(hashed(stem), owner)
            if holds and owner not in self.keys:
                self.keys.put(owner)
                self.count += 1


class Journal:
    """The journal of an output folder.

    Args:
        out: The output folder.
        identity: What the maps depend on, as plain JSON. It has to be the same when a run goes on.
        share: Such as "3/16"; "1/1" for everything.
        resume: Go on with what is there.
        verify: Also compare the content of the files with the journal.

    Raises:
        BadInput: There is a journal and `resume` is not set, it is of a run with another identity, another process
            works on the same share, or a file cannot be written.
    """

    def __init__(self, out: Path, identity: Mapping[str, Any], share: str = "1/1", resume: bool = False,
                 verify: bool = False) -> None:
        self.out, self.share = out, share
        self.folder = out / FOLDER
        self._open_run(identity, resume)
        self.number = self._new_number()
        self.part = Part(part_path(self.folder, self.number), share)
        try:
            self._check_alone()
            self.done = read_done(self.folder, out, verify)
        except BaseException:
            self.part.close()
            raise

    def close(self) -> None:
        """Release the journal for other processes."""
        self.part.close()

    def _open_run(self, identity: Mapping[str, Any], resume: bool) -> None:
        path = self.folder / "run.json"
        wanted = {"journal": FORMAT} | json.loads(json.dumps(identity))
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("not an object")
        except FileNotFoundError:
            write_json(path, wanted)
            return
        except NotADirectoryError as error:
            raise cannot_write(self.out, error) from error
        except (OSError, ValueError, RecursionError) as error:
            raise BadInput(f"{path} cannot be read: {first_line(error)}. Choose another folder with --out.") from error
        if not resume and self.share == "1/1":
            raise BadInput(f"{self.out} has the results of an earlier run. Add --resume to go on with it, or choose "
                           "another folder with --out.")
        if changes := [f"{name} was {_short(found.get(name))} and is now {_short(wanted.get(name))}"
                       for name in {**wanted, **found} if found.get(name) != wanted.get(name)]:
            raise BadInput(f"{self.out} has the results of a run with other options: {'; '.join(changes)}. Run with "
                           "the same options, or choose another folder with --out.")

    def _new_number(self) -> int:
        number = max((int(_PART.fullmatch(path.name)[1]) for path in _parts(self.folder)), default=-1) + 1
        while True:
            try:
                os.close(os.open(part_path(self.folder, number), os.O_CREAT | os.O_EXCL, 0o666))
                return number
            except FileExistsError:  # another share began at the same time
                number += 1
            except OSError as error:
                raise cannot_write(self.folder, error) from error

    def _check_alone(self) -> None:
        """Raise `BadInput` if a living process works on a share that overlaps with this one."""
        part, parts = self.share.split("/")
        for path in _parts(self.folder):
            if path == self.part.path:
                continue
            with open(path, "rb") as file:
                if _lock(file.fileno()):
                    continue
                first = next(_lines(path), {})
            run = first.get("run")
            share = str(run.get("share", "1/1") if isinstance(run, dict) else "1/1")
            other, _, others = share.partition("/")
            if parts != others or part == other:
                raise _busy(path)


def part_path(folder: Path, number: int, block: int | None = None) -> Path:
    """The file of a part of a journal, or of a block of work that belongs to it."""
    return folder / (f"part-{number:05d}.jsonl" if block is None else f"part-{number:05d}-{block}.jsonl")


def read_done(folder: Path, out: Path, verify: bool = False) -> Done:
    """What the parts of a journal say is done, and is: the files are there, and of the sizes that they had.

    Args:
        folder: Of the journal.
        out: The output folder.
        verify: Also compare the content of the files with the journal.
    """
    found = Done()

    def holds(file: Written) -> bool:
        path = out / file.name
        try:
            return path.stat().st_size == file.bytes and (not verify or checksum(path) == file.crc)
        except OSError:
            return False

    for path in _parts(folder):
        pending: dict[str, list[tuple[str, str]]] = {}
        for line in _lines(path):
            with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError):  # damaged
                if "run" in line:
                    pending.clear()  # of a shard that its process did not complete
                elif "files" in line:
                    files = [Written(*file) for file in line["files"]]
                    found.add([(line["key"], line["stem"])], all(map(holds, files)))
                elif "in" in line:
                    pending.setdefault(line["in"], []).append((line["key"], line["stem"]))
                elif "shard" in line:
                    file = Written(line["shard"], line["bytes"], line["crc"])
                    found.add(pending.pop(file.name, []), holds(file))
    return found


@dataclass
class PartContent:
    """What one part says, for a process that goes on with it."""

    done: set[str] = field(default_factory=set)
    """Keys of images that are done, and whose files are there."""
    attempts: int = 0
    """Processes that wrote it."""
    died_with: list[str] = field(default_factory=list)
    """Keys of images that were under way when a process died, where it said so."""


def read_part(path: Path, out: Path) -> PartContent:
    """The content of one part; that of a missing one is empty."""
    found = PartContent()
    pending: set[str] = set()
    begun: list[str] = []
    for line in _lines(path):
        with contextlib.suppress(LookupError, TypeError, ValueError, OSError):
            if "run" in line:
                found.attempts += 1
                found.died_with += begun
                begun, pending = [], set()  # images of a shard that its process did not complete
            elif "begun" in line:
                begun = [line["begun"]]
            elif "failed" in line:
                begun = []
            elif "files" in line:
                begun = []
                if all((out / name).stat().st_size == size for name, size, _ in line["files"]):
                    found.done.add(line["key"])
            elif "in" in line:
                pending.add(line["key"])
            elif "shard" in line:
                begun, complete = [], (out / line["shard"]).stat().st_size == line["bytes"]
                found.done |= pending if complete else set()
                pending = set()
    found.died_with += begun
    return found


def _parts(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if _PART.fullmatch(path.name))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a part that are whole."""
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for text in file:
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(text)
                if isinstance(line, dict):
                    yield line


def _lock(file: int) -> bool:
    """Lock an open file; False if another process has it. File systems without locks are not guarded."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _busy(path: Path) -> BadInput:
    return BadInput(f"{path.parent.parent}: another process is writing here (it holds {path.name}). Wait until it "
                    "ends, give each process its own --shard, or choose another folder with --out.")


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
