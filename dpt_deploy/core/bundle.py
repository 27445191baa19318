"""A bundle: the folder that an export writes, with a typed manifest and a hash for every file.

Only the manifest describes the files. Engines and graphs keep their own formats, so trtexec, Triton and
ONNX tools can read them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contract import Contract
from .errors import BadBundle, BadInput, ContractError
from .files import sha256, write_json
from .manifest import Artifact, Kind, Manifest, Record
from .verdict import ParityReport

MANIFEST = "manifest.json"
SKIPPED_IMAGES = "skipped_images"
"""Among the manifest's options: the images of `--images` that could not be read, one line each."""
PARITY_JSON, REPORT_HTML, MODEL_CARD = "parity.json", "report.html", "MODEL_CARD.md"
VERDICT_FILES = (PARITY_JSON, REPORT_HTML, MODEL_CARD)
"""The files that hold the parity verdict on the bundle."""


@dataclass(frozen=True)
class Recipe:
    """How to produce one file of a bundle."""

    file: str
    kind: Kind
    key: str
    """Hash of everything the file depends on (`Manifest.key`). An intact file with this key is reused."""
    make: Callable[[Path], Record | dict[str, Any] | None]
    """Writes the file atomically to the given path and returns the artefact's details."""
    graph: str | None = None
    precision: str | None = None


class Bundle:
    """A bundle's manifest and files. Use `Bundle.create` or `Bundle.open` to get one."""

    def __init__(
        self, folder: Path, manifest: Manifest, on_verdict_removed: Callable[[Bundle], None] = lambda bundle: None
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self.previous: Manifest | None = None
        """The manifest of an earlier run in the same folder."""
        self._on_verdict_removed = on_verdict_removed
        self._stale: list[str] = []

    @classmethod
    def create(
        cls, folder: Path | str, manifest: Manifest, on_verdict_removed: Callable[[Bundle], None] = lambda bundle: None
    ) -> Bundle:
        """Create a bundle in `folder` and keep the valid files of an earlier run. Writes nothing yet.

        If the checkpoint, contract or model changed, the first `save` deletes all earlier files except
        the builder's timing cache, so a bundle never mixes files of two checkpoints.

        Args:
            folder: The bundle's folder, which need not exist.
            manifest: Describes the bundle. Its artefacts are taken from the earlier run.
            on_verdict_removed: Called after the verdict on earlier files was removed.

        Raises:
            BadInput: `folder` is a file.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"--out: expected a folder for the bundle, received the file {folder}. Choose another.")
        bundle = cls(folder, manifest, on_verdict_removed)
        if (folder / MANIFEST).exists():
            # An unreadable manifest is replaced, because nothing in it can be reused.
            with contextlib.suppress(BadBundle):
                bundle.previous = Manifest.read(folder / MANIFEST)
                bundle.update(artifacts=bundle.previous.artifacts)
                if manifest.origin != bundle.previous.origin:
                    bundle._forget([artifact for artifact in bundle.artifacts if artifact.kind != "cache"])
        return bundle

    @classmethod
    def open(cls, folder: Path | str, on_verdict_removed: Callable[[Bundle], None] = lambda bundle: None) -> Bundle:
        """Read the manifest in `folder`. `path` checks the hashes of the files.

        Args:
            folder: The bundle's folder.
            on_verdict_removed: As for `create`.

        Raises:
            BadBundle: The manifest is missing, not valid, or of another format.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            what = "there is no such folder" if not folder.exists() else f"it has no {MANIFEST}"
            raise BadBundle(
                f"{folder}: expected a bundle, but {what}. Create one: python -m dpt_deploy.export best_model.pth"
            )
        return cls(folder, Manifest.read(folder / MANIFEST), on_verdict_removed)

    @property
    def contract(self) -> Contract:
        """The typed contract of the bundle's graphs."""
        return Contract.from_json(self.manifest.contract)

    @property
    def name(self) -> str:
        """The bundle's name. By default, that of the checkpoint."""
        return self.manifest.name

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All files, in manifest order."""
        return self.manifest.artifacts

    def last_report(self) -> ParityReport | None:
        """The parity report of the last run. None if there is none or it is not readable."""
        try:
            return ParityReport.from_json(json.loads((self.folder / PARITY_JSON).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def find(self, kind: Kind, **wanted: Any) -> list[Artifact]:
        """Artefacts of `kind` whose fields, or fields of `details`, equal `wanted`, in manifest order."""
        return [
            artifact for artifact in self.artifacts
            if artifact.kind == kind
            and all(getattr(artifact, key, getattr(artifact.details, key, None)) == value
                    for key, value in wanted.items())
        ]

    def path(self, artifact: Artifact) -> Path:
        """The path of an artefact whose file and external data match their hashes.

        Raises:
            BadBundle: A file is missing or does not match the manifest.
        """
        if damage := self.damage(artifact):
            raise BadBundle(f"{self.folder}/{damage}. {self._remedy(artifact)}")
        return self.folder / artifact.file

    def damage(self, artifact: Artifact) -> str | None:
        """What is wrong with an artefact's file or its external data, starting with the file's name, or None."""
        for part in (artifact, *self.find("data", file=f"{artifact.file}.data")):
            path = self.folder / part.file
            if not path.is_file():
                return f"{part.file} is missing from the bundle"
            if path.stat().st_size != part.bytes or sha256(path) != part.sha256:
                return (f"{part.file} is not the file that {MANIFEST} describes (SHA-256 expected "
                        f"{part.sha256[:12]}...); it was changed, truncated or replaced")
        return None

    def intact(self, artifact: Artifact) -> bool:
        """Whether an artefact's file and external data match their hashes."""
        return self.damage(artifact) is None

    def produce(self, recipe: Recipe) -> tuple[Artifact, bool]:
        """Produce or reuse the file of a recipe and register it. Returns the artefact and whether it was reused."""
        for artifact in self.artifacts:
            if artifact.file == recipe.file and artifact.key == recipe.key and self.intact(artifact):
                return artifact, True
        self.folder.mkdir(parents=True, exist_ok=True)
        details = recipe.make(self.folder / recipe.file)
        return self.add(
            recipe.file, recipe.kind, graph=recipe.graph, precision=recipe.precision, key=recipe.key,
            details=details or {},
        ), False

    def add(self, file: str, kind: Kind, **fields: Any) -> Artifact:
        """Register a file with other `fields` of `Artifact`, and a graph's external data, and save the manifest.

        Replacing a graph by a different one removes the verdict.
        """
        artifact = self._described(file, kind, **fields)
        others = [a for a in self.artifacts if a.file != file]
        data: list[Artifact] = []
        if kind == "onnx":
            if any(before.sha256 != artifact.sha256 for before in self.find("onnx", file=file)):
                self._forget_verdict()
            others = [a for a in self.artifacts if a.file not in (file, f"{file}.data")]
            if (self.folder / f"{file}.data").exists():
                data = [self._described(f"{file}.data", "data")]
        self.update(artifacts=(*others, artifact, *data))
        self.save()
        return artifact

    def discard(self) -> None:
        """Delete the files of this bundle, its manifest, and the folder if nothing else is in it."""
        for file in (*(artifact.file for artifact in self.artifacts), *VERDICT_FILES, MANIFEST):
            (self.folder / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder has other files, or was never made
            self.folder.rmdir()

    def remove(self, artifact: Artifact) -> None:
        """Delete an artefact and its external data. Removing a graph also removes the verdict."""
        self._forget([artifact, *self.find("data", file=f"{artifact.file}.data")])
        if artifact.kind == "onnx":
            self._forget_verdict()
        self.save()

    def update(self, **fields: Any) -> None:
        """Replace fields of the manifest in memory. The next `save`, `add` or `produce` writes it."""
        self.manifest = self.manifest.model_copy(update=fields)

    def save(self) -> None:
        """Write the manifest atomically and delete the files that were removed from it."""
        verdict_removed = MODEL_CARD in self._stale
        write_json(self.folder / MANIFEST, self.manifest.to_json())
        listed = {artifact.file for artifact in self.artifacts}
        while self._stale:
            # A model card may contain hand-written text, so `on_verdict_removed` decides what to do with it.
            if (file := self._stale.pop()) not in listed and file != MODEL_CARD:
                (self.folder / file).unlink(missing_ok=True)
        if verdict_removed:
            self._on_verdict_removed(self)

    def check_contract(self, contract: dict[str, Any] | None, file: str) -> None:
        """Raise `ContractError` if the contract embedded in an ONNX file differs from the manifest's."""
        if contract is not None and Contract.from_json(contract) != self.contract:
            raise ContractError(f"{self.folder / file} contains another contract than {MANIFEST}. {self._remedy()}")

    def _described(self, file: str, kind: Kind, **fields: Any) -> Artifact:
        path = self.folder / file
        return Artifact(file=file, kind=kind, sha256=sha256(path), bytes=path.stat().st_size, **fields)

    def _forget_verdict(self) -> None:
        self._forget([artifact for artifact in self.artifacts if artifact.file in VERDICT_FILES])

    def _forget(self, gone: list[Artifact]) -> None:
        self._stale += [artifact.file for artifact in gone]
        self.update(artifacts=tuple(artifact for artifact in self.artifacts if artifact not in gone))

    def _remedy(self, artifact: Artifact | None = None) -> str:
        if artifact is not None and artifact.kind == "engine":
            return f"Build it again: python -m dpt_deploy.build {self.folder}"
        return f"Export again: python -m dpt_deploy.export {self.manifest.checkpoint.file} --out {self.folder}"
