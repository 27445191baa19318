"""Walking folders, local and remote, with patterns: lazily, sorted, one folder's names in memory at a time."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from . import places
from .errors import BadInput

_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_BRACES = re.compile(r"\{([^{}]*)\}")
MOST_EXPANDED = 1_000_000
_MOST_DIGITS = 18


class Found(NamedTuple):
    """A file below a folder."""

    path: str
    """Relative to the folder, with / between its components."""
    place: str
    size: int | None
    """Bytes, where the listing tells."""


def has_braces(place: str) -> bool:
    """Whether a place is a brace pattern, such as shard-{000000..000123}.tar or {train,val}.tar."""
    return any(_RANGE.fullmatch(found[1]) or "," in found[1] for found in _BRACES.finditer(place))


def expand(pattern: str) -> Iterator[str]:
    """The places of a brace pattern, in order: {000..123} counts, with the zeros of its first number; {a,b} chooses.

    Raises `BadInput` if a range runs backwards or the pattern stands for too many places.
    """
    pieces: list[list[str]] = []
    last, total = 0, 1
    for found in _BRACES.finditer(pattern):
        choices = found[1].split(",")
        if span := _RANGE.fullmatch(found[1]):
            low, high = (int(number) if len(number) <= _MOST_DIGITS else -1 for number in span.groups())
            if not 0 <= low <= high < low + MOST_EXPANDED:
                raise BadInput(f"{places.shown(pattern)}: expected a range such as {{000000..000123}} of at most "
                               f"{MOST_EXPANDED} numbers of at most {_MOST_DIGITS} digits, received {found[0][:80]}.")
            choices = [str(number).zfill(len(span[1])) for number in range(low, high + 1)]
        elif len(choices) == 1:
            continue  # braces of a name
        pieces += [[pattern[last:found.start()]], choices]
        last, total = found.end(), total * len(choices)
    if total > MOST_EXPANDED:
        raise BadInput(f"{places.shown(pattern)}: expected at most {MOST_EXPANDED} files, the pattern stands for "
                       f"{total}.")
    return map("".join, itertools.product(*pieces, [pattern[last:]]))


def has_wildcards(place: str) -> bool:
    """Whether a place is a glob pattern. The query of a web address is not a wildcard."""
    return re.search(r"[*\[]" if places.is_address(place) else r"[*?\[]", place) is not None


def fixed_part(pattern: str) -> tuple[str, str]:
    """The folder before the first component with a wildcard or braces, and the rest of the pattern."""
    found = re.search(r"[*\[{]" if places.is_address(pattern) else r"[*?\[{]", pattern)
    head, slash, _ = pattern[: found.start() if found else len(pattern)].rpartition("/")
    rest = pattern[len(head) + len(slash):]
    return head or slash, rest


def walk(
    folder: str, pattern: str, problem: Callable[[str], None], passed: Callable[[str], None] | None = None,
) -> Iterator[Found]:
    """The files below a folder that match a pattern, sorted by path.

    Hidden files and folders match only a component that begins with a dot itself. A folder that contains itself by a
    link is entered once.

    Args:
        folder: Local or remote; "" is the current one.
        pattern: Of the path below it: * ? [...] within a component, ** for any number of folders.
        problem: Is told of folders below it that cannot be listed.
        passed: Is told the paths of folders that are not entered, with a slash at their end.

    Raises:
        BadInput: The folder itself cannot be listed.
    """
    parts = tuple(part for part in pattern.split("/") if part not in ("", "."))
    yield from _walk(folder, "", _closed({0}, parts), parts, problem, passed or (lambda path: None), ())


def _closed(states: set[int], parts: tuple[str, ...]) -> frozenset[int]:
    """`states` and those behind a `**`, which may stand for no folder."""
    found = set(states)
    for state in sorted(states):
        while state < len(parts) and parts[state] == "**":
            state += 1
            found.add(state)
    return frozenset(found)


def _walk(
    folder: str, path: str, states: frozenset[int], parts: tuple[str, ...], problem: Callable[[str], None],
    passed: Callable[[str], None], above: tuple[tuple[int, int], ...],
) -> Iterator[Found]:
    """Files of one folder and those below; `states` are the numbers of the parts that its entries may match."""
    if not places.is_address(folder):
        try:
            found = os.stat(folder or ".")
        except OSError:
            found = None
        if found and (found.st_dev, found.st_ino) in above:
            problem(f"{folder} is a link to a folder above it, and is not entered again")
            return
        above = (*above, (found.st_dev, found.st_ino)) if found else above
    try:
        listed = places.entries(folder)
    except BadInput as error:
        if not path:
            raise
        problem(str(error))
        return
    for entry in listed:
        following, matched = set(), False
        for state in states:
            if state == len(parts):
                continue
            hidden = entry.name.startswith(".")
            if parts[state] == "**":
                if entry.is_folder and not hidden:
                    following.add(state)
                matched |= not entry.is_folder and not hidden and state == len(parts) - 1
            elif (not hidden or parts[state].startswith(".")) and fnmatch.fnmatchcase(entry.name, parts[state]):
                matched |= state == len(parts) - 1 and not entry.is_folder
                following.add(state + 1)
        below = f"{path}{entry.name}"
        if entry.is_folder and following - {len(parts)}:
            yield from _walk(entry.place, f"{below}/", _closed(following, parts), parts, problem, passed, above)
        elif entry.is_folder and not entry.name.startswith("."):
            passed(f"{below}/")
        elif matched:
            yield Found(below, entry.place, entry.size)
