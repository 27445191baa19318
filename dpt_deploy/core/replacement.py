"""A bundle that is made apart from the earlier one in its folder, and then takes its place at once."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from .bundle import MANIFEST, VERDICT_FILES, Bundle
from .errors import BadBundle, BadInput
from .files import cannot_write, temporary_folder

_NAMES = re.compile("|".join([
    r"(?:model|frame)\..*\.(?:onnx|onnx\.data|engine)", r"reference\.npz", r"timing\..*\.cache", r"david\.onnx",
    *map(re.escape, VERDICT_FILES)]))


def check_free(folder: Path | str) -> None:
    """Raise `BadInput` if a folder without a manifest has a file with a name that a bundle gives to one of its own."""
    folder = Path(folder)
    if os.path.isdir(folder) and not os.path.lexists(folder / MANIFEST) and (taken := sorted(bundle_files(folder))):
        raise BadInput(f"--out {folder}: expected a folder without files of these names, or one with the {MANIFEST} of "
                       f"a bundle, received {', '.join(taken[:5])}, which would be replaced. Choose another folder, "
                       "or move these files.")


def bundle_files(folder: Path) -> set[str]:
    """The names in a folder that a bundle gives to its files, other than the manifest's."""
    try:
        return {name for name in os.listdir(folder) if _NAMES.fullmatch(name)}
    except OSError:
        return set()


def begin_apart(apart: Path, folder: Path | str, others: Iterable[str] = ()) -> None:
    """Give an empty folder the files of the bundle in `folder`, so that a bundle made there reuses the valid ones.

    Files are hard links where the file system has them: what is written later must be renamed into place, as
    `core.files` does.

    Args:
        apart: The empty folder.
        folder: The folder of the earlier bundle, or without one.
        others: Names of files of `folder` that the manifest does not list.

    Raises:
        BadInput: A file cannot be copied.
    """
    folder = Path(folder)
    for name in {*_listed(folder), *others}:
        if os.path.isfile(folder / name):
            _link(Path(os.path.realpath(folder / name)), apart / name)


def take_place(made: Bundle, folder: Path | str) -> Bundle:
    """Move a bundle into a folder on the same disk, in place of the earlier one there. Other files there stay.

    Args:
        made: The bundle, begun with `begin_apart`. All files of its folder are moved.
        folder: The other folder, which exists.

    Returns:
        The bundle in its new place.

    Raises:
        BadInput: A file cannot be written there, or is of the user. As after any exception, the folder is as before.
    """
    folder = Path(folder)
    check_free(folder)
    new = [*sorted(entry.name for entry in made.folder.iterdir() if entry.is_file() and entry.name != MANIFEST),
           MANIFEST]
    stale = _listed(folder) - set(new)
    with temporary_folder(folder / "earlier") as kept:
        before = {name for name in (*new, *stale) if os.path.lexists(folder / name)}
        for name in before:
            _link(folder / name, kept / name)
        try:
            for name in new:
                os.replace(made.folder / name, folder / name)
            for name in stale:
                (folder / name).unlink(missing_ok=True)
        except BaseException as error:
            for name in (*new, *stale):
                with contextlib.suppress(OSError):
                    if name in before:
                        os.replace(kept / name, folder / name)
                    else:
                        (folder / name).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise cannot_write(folder, error) from error
            raise
    return Bundle(folder, made.manifest)


def _listed(folder: Path) -> set[str]:
    """The manifest and the files that it lists; nothing without one that can be read."""
    try:
        return {MANIFEST, *(artifact.file for artifact in Bundle.open(folder).artifacts)}
    except BadBundle:
        return set()


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        try:
            shutil.copy2(source, target, follow_symlinks=False)
        except OSError as error:
            raise cannot_write(target, error) from error
