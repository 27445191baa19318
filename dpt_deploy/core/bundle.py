"""One export's folder: its typed manifest, a hash for every file, and the way to each artefact.

The manifest is the only description; engines and graphs stay in their own formats, so that trtexec,
Triton and ONNX tools read them as they are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contract import Contract
from .errors import BadBundle, BadInput, ContractError
from .files import sha256, write_json
from .manifest import Artifact, Kind, Manifest, Record

MANIFEST = "manifest.json"
PARITY_JSON, REPORT_HTML, MODEL_CARD = "parity.json", "report.html", "MODEL_CARD.md"
VERDICT_FILES = (PARITY_JSON, REPORT_HTML, MODEL_CARD)
"""The verdict on the files beside them."""


@dataclass(frozen=True)
class Recipe:
    """How to make one file of a bundle."""

    file: str
    kind: Kind
    key: str
    """Hash of everything that the file depends on (`Manifest.key`); an intact file with this key is reused."""
    make: Callable[[Path], Record | dict[str, Any] | None]
    """Writes the file, atomically, to the path that it is given, and returns the artefact's details."""
    graph: str | None = None
    precision: str | None = None


class Bundle:
    """A bundle's manifest and files. `Bundle.create` and `Bundle.open` make one."""

    def __init__(
        self, folder: Path, manifest: Manifest, when_unjudged: Callable[[Bundle], None] = lambda bundle: None
    ) -> None:
        """`when_unjudged` is called when the verdict on earlier files is forgotten."""
        self.folder = folder
        self.manifest = manifest
        self.previous: Manifest | None = None
        """The manifest that an earlier run left in the folder."""
        self._when_unjudged = when_unjudged
        self._stale: list[str] = []

    @classmethod
    def create(
        cls, folder: Path | str, manifest: Manifest, when_unjudged: Callable[[Bundle], None] = lambda bundle: None
    ) -> Bundle:
        """A bundle in `folder`, keeping the files of an earlier run that are still right. Writes nothing yet.

        Files made from another checkpoint, contract or model are forgotten here, except a builder's
        timings, and deleted by the first `save`: a bundle never mixes the files of two checkpoints.

        Args:
            folder: Where the bundle is, or will be.
            manifest: Describes the bundle; its artefacts are taken from the earlier run.
            when_unjudged: Called when the verdict on earlier files is forgotten.

        Raises:
            BadInput: `folder` is a file.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"--out: expected a folder for the bundle, received the file {folder}. Choose another.")
        bundle = cls(folder, manifest, when_unjudged)
        if (folder / MANIFEST).exists():
            # A manifest that cannot be read is replaced: nothing of it could be reused.
            with contextlib.suppress(BadBundle):
                bundle.previous = Manifest.read(folder / MANIFEST)
                bundle._set(artifacts=bundle.previous.artifacts)
                if manifest.origin != bundle.previous.origin:
                    bundle._forget([artifact for artifact in bundle.artifacts if artifact.kind != "cache"])
        return bundle

    @classmethod
    def open(cls, folder: Path | str, when_unjudged: Callable[[Bundle], None] = lambda bundle: None) -> Bundle:
        """Read the manifest in `folder`; file hashes are checked by `path`.

        Args:
            folder: Where the bundle is.
            when_unjudged: Called when the verdict on earlier files is forgotten.

        Raises:
            BadBundle: There is no manifest, or it is not one that this version reads.
        """
        folder = Path(folder)
        if not (folder / MANIFEST).is_file():
            what = "there is no such folder" if not folder.exists() else f"it has no {MANIFEST}"
            raise BadBundle(
                f"{folder}: expected a bundle, but {what}. Make one with: python -m dpt_deploy.export best_model.pth"
            )
        return cls(folder, Manifest.read(folder / MANIFEST), when_unjudged)

    @property
    def contract(self) -> Contract:
        """What goes in and what comes out."""
        return Contract.from_json(self.manifest.contract)

    @property
    def name(self) -> str:
        """The bundle's name, by default the checkpoint's."""
        return self.manifest.name

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All files, in manifest order."""
        return self.manifest.artifacts

    def find(self, kind: Kind, **wanted: Any) -> list[Artifact]:
        """Artefacts of `kind` whose fields, or fields of `details`, equal `wanted`, in manifest order."""
        return [
            artifact for artifact in self.artifacts
            if artifact.kind == kind
            and all(getattr(artifact, key, getattr(artifact.details, key, None)) == value
                    for key, value in wanted.items())
        ]

    def path(self, artifact: Artifact) -> Path:
        """The artefact's file, after checking its hash and that of its external data.

        Raises:
            BadBundle: A file is missing, or is not the one that the manifest describes.
        """
        for part in (artifact, *self.find("data", file=f"{artifact.file}.data")):
            path = self.folder / part.file
            if not path.is_file():
                raise BadBundle(f"{path} is missing from the bundle. {self._remedy(artifact)}")
            if path.stat().st_size != part.bytes or sha256(path) != part.sha256:
                raise BadBundle(
                    f"{path} is not the file that {MANIFEST} describes (SHA-256 expected {part.sha256[:12]}...); it "
                    f"was changed, truncated or replaced. {self._remedy(artifact)}"
                )
        return self.folder / artifact.file

    def intact(self, artifact: Artifact) -> bool:
        """Whether `path` would return the file."""
        try:
            self.path(artifact)
        except BadBundle:
            return False
        return True

    def produce(self, recipe: Recipe) -> tuple[Artifact, bool]:
        """The artefact of a recipe, and whether an earlier run had made it already.

        The one place that decides about reuse, registers what was made and writes the manifest.
        """
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
        """Describe a file that now lies in the folder, with a graph its external data, and save the manifest.

        A graph that replaces another one of the same name ends the verdict on it.
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
        self._set(artifacts=(*others, artifact, *data))
        self.save()
        return artifact

    def remove(self, artifact: Artifact) -> None:
        """Forget an artefact and delete its files; with a graph, the verdict."""
        self._forget([artifact, *self.find("data", file=f"{artifact.file}.data")])
        if artifact.kind == "onnx":
            self._forget_verdict()
        self.save()

    def update(self, **fields: Any) -> None:
        """Replace fields of the manifest; the next `save`, `add` or `produce` writes it."""
        self._set(**fields)

    def save(self) -> None:
        """Write the manifest, atomically, and delete the files that were forgotten."""
        unjudged = MODEL_CARD in self._stale
        write_json(self.folder / MANIFEST, self.manifest.to_json())
        listed = {artifact.file for artifact in self.artifacts}
        while self._stale:
            # A model card may hold what people wrote: `when_unjudged` decides what becomes of it.
            if (file := self._stale.pop()) not in listed and file != MODEL_CARD:
                (self.folder / file).unlink(missing_ok=True)
        if unjudged:
            self._when_unjudged(self)

    def check_contract(self, contract: dict[str, Any] | None, file: str) -> None:
        """Raise `ContractError` unless the contract inside an ONNX file is the manifest's."""
        if contract is not None and Contract.from_json(contract) != self.contract:
            raise ContractError(f"{self.folder / file} carries another contract than {MANIFEST}. {self._remedy()}")

    def _set(self, **fields: Any) -> None:
        self.manifest = self.manifest.model_copy(update=fields)

    def _described(self, file: str, kind: Kind, **fields: Any) -> Artifact:
        path = self.folder / file
        return Artifact(file=file, kind=kind, sha256=sha256(path), bytes=path.stat().st_size, **fields)

    def _forget_verdict(self) -> None:
        self._forget([artifact for artifact in self.artifacts if artifact.file in VERDICT_FILES])

    def _forget(self, gone: list[Artifact]) -> None:
        self._stale += [artifact.file for artifact in gone]
        self._set(artifacts=tuple(artifact for artifact in self.artifacts if artifact not in gone))

    def _remedy(self, artifact: Artifact | None = None) -> str:
        if artifact is not None and artifact.kind == "engine":
            return f"Build it again: python -m dpt_deploy.build {self.folder}"
        return f"Export again: python -m dpt_deploy.export {self.manifest.checkpoint.file} --out {self.folder}"
