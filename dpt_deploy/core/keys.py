"""Keys of inputs: paths that are safe below an output folder, and differ if their places do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Set

from . import places
from .hashes import Hashes, hashed


def safe_path(path: str) -> str:
    """A path that stays below the folder it is joined to, whatever `path` is, and can be written in UTF-8."""
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "/".join("up" if part == ".." else part for part in text.split("/") if part not in ("", "."))


def shared_paths(units: Iterable[tuple[str, str, int | None]]) -> Set[int]:
    """Hashed paths, safe ones, that several places have."""
    first, shared = Hashes(), set()
    for path, place, _ in units:
        key, whole = hashed(safe_path(path)), hashed(places.identity(place))
        if first.get(key) not in (None, whole):
            shared.add(key)
        first.put(key, whole)
    return shared


def with_hash(path: str, place: str) -> str:
    """A path that a hash of the place is added to, in front of its suffix."""
    stem, suffix = os.path.splitext(path)
    return f"{stem}-{hashed(places.identity(place)):016x}{suffix}"
