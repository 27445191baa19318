"""Where results go: files of their own, or shards. Each image is in the journal when its files are in place."""

from __future__ import annotations

import contextlib
import dataclasses
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from ..core.files import cannot_write, temporary_folder
from ..core.shard_writer import MOST_BYTES, ShardWriter
from ..core.storage import Item
from ..report.panel import panel
from ..report.prediction_files import MATTE_SUFFIX, PANEL_SUFFIX, write_prediction
from ..report.writers import png_bytes, write_bytes
from ..runtime import Prediction
from .extras import ExtraWriter
from .formats import FORMATS, Forms, store, zarr_group
from .journal import Part, Written, written
from .naming import check_stem
from .video import matte

Encoded = Any
"""What a thread made of one image: files that it has written, or the content of files by the end of their names."""


@dataclass(frozen=True)
class Done:
    """An input whose maps are encoded."""

    key: str
    stem: str
    size: tuple[int, int]
    """Height and width [pixels]."""
    encoded: Encoded
    note: str = ""
    """What was left out of it."""


class Output(Protocol):
    """A place for results."""

    def encode(
        self, stem: str, image: np.ndarray, prediction: Prediction, caption: str, item: Item | None
    ) -> Encoded:
        """Encode the maps of one image. Thread-safe. Raises `BadInput` if they cannot be stored.

        `item` is the input, for its EXIF.
        """

    def add(self, done: Done) -> list[str]:
        """Store them. Returns the names of the files."""

    def close(self, discard: bool = False) -> None:
        """Finish what is open, or discard it."""


class Files:
    """Files of their own for each image.

    Args:
        out: The output folder.
        format: One of `FORMATS` without shards.
        forms: By head.
        look: The picture besides: panel, matte or none.
        part: The journal; None for none.
        extras: Writes the files besides the maps; None for none.
    """

    def __init__(
        self, out: Path, format: str, forms: Forms, look: str, part: Part | None, extras: ExtraWriter | None = None
    ) -> None:
        self.out, self.format, self.forms, self.look, self.part = out, format, forms, look, part
        self.extras = extras

    def encode(
        self, stem: str, image: np.ndarray, prediction: Prediction, caption: str, item: Item | None
    ) -> list[Path]:
        check_stem(stem)
        base = self.out / stem
        if self.extras is None:
            return self._maps(base, image, prediction, caption)
        prediction = self.extras.metric(prediction, item)
        files = self._maps(base, image, prediction, caption)
        return files + self.extras.write(base.parent, base.name, image, prediction, item)

    def _maps(self, base: Path, image: np.ndarray, prediction: Prediction, caption: str) -> list[Path]:
        if FORMATS[self.format].encode is None:
            left_out = prediction.maps.keys() - self.forms.keys()
            chosen = dataclasses.replace(prediction, **dict.fromkeys(left_out))
            picture = matte(image, prediction) if self.look == "matte" else None
            return write_prediction(base.parent, base.name, image, chosen, caption, picture, self.look != "none")
        files = []
        for suffix, data in encoded(self.format, self.forms, self.look, image, prediction, caption).items():
            files.append(base.with_name(f"{base.name}.{suffix}"))
            write_bytes(files[-1], data)
        return files

    def add(self, done: Done) -> list[str]:
        if self.part is not None:
            files = [written(self.out, file) for file in done.encoded]
            self.part.done(done.key, done.stem, done.size, files, done.note)
        return [file.name for file in done.encoded]

    def close(self, discard: bool = False) -> None:
        pass


class Shards:
    """Results in shards: tar files in WebDataset's naming, or zipped zarr groups with a group for each image.

    A shard appears when it is complete; the journal has its images before.

    Args:
        out: The output folder.
        format: One of `FORMATS` with shards.
        forms: By head.
        look: As for `Files`.
        part: The journal.
        name: What the names of the shards begin with; no other process has it.
        samples: Images in a shard.
        extras: Gives depth in metres; None leaves it as it is.
    """

    def __init__(self, out: Path, format: str, forms: Forms, look: str, part: Part, name: str, samples: int,
                 extras: ExtraWriter | None = None) -> None:
        self.out, self.format, self.forms, self.look, self.part = out, format, forms, look, part
        self.extras = extras
        self._images: list[dict[str, Any]] = []
        kind = ShardWriter if FORMATS[format].shards == "tar" else ZarrWriter
        self._writer = kind(out, name, most_samples=samples, before=self._complete)

    def encode(
        self, stem: str, image: np.ndarray, prediction: Prediction, caption: str, item: Item | None
    ) -> dict[str, bytes]:
        if self.extras is not None:
            prediction = self.extras.metric(prediction, item)
        return encoded(self.format, self.forms, self.look, image, prediction, caption)

    def add(self, done: Done) -> list[str]:
        path = self._writer.add(done.stem, done.encoded)
        line = {"key": done.key, "stem": done.stem, "size": list(done.size)}
        self._images.append(line | ({"note": done.note} if done.note else {}))
        return [path.name]

    def close(self, discard: bool = False) -> None:
        self._writer.__exit__(RuntimeError if discard else None, RuntimeError() if discard else None, None)

    def _complete(self, temporary: Path, path: Path) -> None:
        found = written(temporary.parent, temporary)
        self.part.shard(Written(path.relative_to(self.out).as_posix(), found.bytes, found.crc), self._images)
        self._images = []


def encoded(
    format: str, forms: Forms, look: str, image: np.ndarray, prediction: Prediction, caption: str
) -> dict[str, bytes]:
    """The files of one image, by the end of the name. Raises `BadInput` if a map cannot be stored in its form."""
    encode = FORMATS[format].encode
    assert encode is not None
    files = encode(store(prediction, forms), forms, prediction.meanings)
    if look != "none":
        suffix = (PANEL_SUFFIX if look == "panel" else MATTE_SUFFIX).lstrip(".")
        picture = matte(image, prediction) if look == "matte" else panel(image, prediction, caption)
        files[suffix] = png_bytes(picture, {})
    return files


class ZarrWriter:
    """Writes zipped zarr groups with a group for each image, maps-....zarr.zip; `zarr.open` reads them.

    The same interface as `core.shard_writer.ShardWriter`, which it takes the place of.
    """

    def __init__(self, folder: Path, name: str, most_samples: int, before: Callable[[Path, Path], None]) -> None:
        self.folder, self.name, self.most_samples, self.before = folder, name, most_samples, before
        self.number = 0
        self._open: contextlib.ExitStack | None = None
        self._file: zipfile.ZipFile
        self._groups: set[str] = set()
        self._samples = 0

    @property
    def path(self) -> Path:
        return self.folder / f"{self.name}-{self.number:06d}.zarr.zip"

    def add(self, stem: str, members: Mapping[str, bytes]) -> Path:
        """Add the group of an image. Raises `BadInput` if the stem is no path below, or the disk cannot be written."""
        check_stem(stem)
        if self._open and (self._samples >= self.most_samples or self._file.fp.tell() > MOST_BYTES):
            self.finish()
        try:
            if self._open is None:
                with contextlib.ExitStack() as stack:
                    folder = stack.enter_context(temporary_folder(self.path))
                    self._file = stack.enter_context(zipfile.ZipFile(folder / self.path.name, "w"))
                    self._open = stack.pop_all()
            parts = stem.split("/")
            for folder in ["", *("/".join(parts[:n]) + "/" for n in range(1, len(parts)))]:
                if folder not in self._groups:
                    self._groups.add(folder)
                    self._file.writestr(f"{folder}zarr.json", zarr_group())
            for name, data in members.items():
                self._file.writestr(f"{stem}/{name}", data)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        self._samples += 1
        return self.path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Finish the last shard; after an error, discard it."""
        if error is None:
            self.finish()
        elif self._open is not None:
            with self._open:
                self._file.close()
            self._open = None

    def finish(self) -> None:
        """Close the present shard and give it its name."""
        if self._open is None:
            return
        with self._open:
            try:
                self._file.close()
                temporary = Path(self._file.filename)
                self.before(temporary, self.path)
                temporary.replace(self.path)
            except OSError as error:
                raise cannot_write(self.path, error) from error
        self._open, self._samples, self._groups = None, 0, set()
        self.number += 1
