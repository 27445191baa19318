"""Names of the outputs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from ..core.errors import BadInput
from ..core.hashes import Hashes, hashed
from ..core.keys import safe_path


def is_file_name(name: str) -> bool:
    """Whether a component of a path can be the name of a file: "", "." and ".." are folders."""
    return name not in ("", ".", "..")


def check_stem(stem: str) -> None:
    """Raise `BadInput` unless the files of a stem are below the folder that it is joined to."""
    if not all(map(is_file_name, stem.split("/"))):
        raise BadInput(f"expected the name of a result below the output folder, received {stem!r}. Rename the input.")


class Names:
    """Gives each input the stem of its output files: the input's own name without its suffix, where that is free.

    The rule depends on the order of the inputs and on nothing else, so every process that lists the same inputs gives
    the same names. Names that a journal holds stay with their inputs.

    Args:
        kept: Stems that are taken, and by which key, both `hashed`.
        dots: Whether a stem may have dots in its last component. In tar shards it may not, nor any letter that keeps
            readers from a member.
    """

    def __init__(self, kept: Hashes | None = None, dots: bool = True) -> None:
        self._kept = kept or Hashes()
        self._used = Hashes()
        self._dots = dots
        self.dot = "." if dots else "_"
        """What stands between a stem and an addition to it."""

    def stem(self, key: str, member: str = "") -> str | None:
        """The stem of the outputs of an input, with / between folders; None if `key` had one before.

        Args:
            key: `storage.Item.key`.
            member: `storage.Item.member`.
        """
        owner = hashed(key)
        for name in self._candidates(key, member):
            stem = hashed(name)
            used = self._used.get(stem)
            if used == owner:
                return None
            if used is None and self._kept.get(stem) in (None, owner):
                self._used.put(stem, owner)
                return name
        raise AssertionError

    def _candidates(self, key: str, member: str) -> Iterator[str]:
        """Names from the shortest on. Members of a tar go into a folder with the name of the tar."""
        key, member = safe_path(key), safe_path(member)
        folder, _, name = key.rpartition("/")
        if member and key != member:  # the tar is not the only source
            inner = member.rpartition("/")[0]
            outer = key.removesuffix(member).rstrip("/")
            outer = outer[:-4] if outer.lower().endswith(".tar") else outer
            folder = f"{outer}/{inner}".rstrip("/")
        begin = f"{folder}/" if folder else ""
        short = name.partition(".")[0] if member else name.rpartition(".")[0]
        names = [short or name, name.rpartition(".")[0] or name, name]
        for one in itertools.chain(names, (f"{name}-{number}" for number in itertools.count(2))):
            if not self._dots:
                yield _in_tars(begin, one)
            elif is_file_name(one):
                yield begin + one


def _in_tars(folder: str, name: str) -> str:
    """A path that `tar_index.refusal` has nothing against; `folder` has a slash at its end."""
    path = re.sub(r"(^|/)\.", r"\1_", folder) + name.replace(".", "_")
    path = "".join("_" if letter == "\\" or not letter.isprintable() else letter for letter in path)
    return re.sub("^([A-Za-z]):", r"\1_", path)
