"""A bundle: the folder that an export writes, with a typed manifest and a hash for every file.

Only the manifest describes the files. Engines and graphs keep their own formats, so trtexec, Triton and
ONNX tools can read them.
"""

from __future__ import annotations

import contextlib
import math
import os
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contract import Contract
from .errors import BadBundle, BadInput, ContractError, DptError
from .files import sha256, write_json
from .hub_address import is_address, parse_address
from .manifest import Artifact, Kind, Manifest, Record
from .onnx_file import read_onnx_file
from .values import parse_json
from .verdict import ParityReport

MANIFEST = "manifest.json"
SKIPPED_IMAGES = "skipped_images"
"""Among the manifest's options: the images of `--images` that could not be read, one line each."""
DESCRIBED_BY = "described_by"
"""Among the manifest's options, of an import: the value of `--description`, a file without its folder."""
PARITY_JSON, REPORT_HTML, MODEL_CARD = "parity.json", "report.html", "MODEL_CARD.md"
VERDICT_FILES = (PARITY_JSON, REPORT_HTML, MODEL_CARD)
"""The files that hold the parity verdict on the bundle."""
CREATE = "Create a bundle with: python -m dpt_deploy.export best_model.pth"
REPRODUCIBLE = {"onnx": True, "data": True, "reference": True, "compat": True, "engine": False, "cache": False}
"""Whether making a file again from the same inputs gives the same bytes, by kind."""


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
        self._written: set[str] = set()
        self._before = {name for name in VERDICT_FILES if os.path.lexists(Path(folder) / name)}

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
        if os.path.exists(folder) and not os.path.isdir(folder):
            raise BadInput(f"--out: expected a folder for the bundle, received the file {folder}. Choose another.")
        bundle = cls(folder, manifest, on_verdict_removed)
        if os.path.exists(folder / MANIFEST):
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
        if is_address(folder):
            address = parse_address(folder)
            raise BadBundle(f"{address}: expected the folder of a bundle, received an address of the hub, which only "
                            "commands that run a bundle take, such as predict. Copy it: "
                            f"{address.download_command}, then pass {address.local}.")
        folder = Path(folder)
        # os.path also answers for names that are too long for the file system.
        if os.path.isfile(folder):
            remedy = f"Pass {folder.parent}." if (folder.parent / MANIFEST).is_file() else CREATE
            raise BadBundle(f"{folder}: expected a bundle, which is a folder, but received a file. {remedy}")
        if not os.path.isfile(folder / MANIFEST):
            what = f"it contains no {MANIFEST}" if os.path.exists(folder) else "the folder does not exist"
            raise BadBundle(f"{folder}: expected a bundle, but {what}. {CREATE}")
        return cls(folder, Manifest.read(folder / MANIFEST), on_verdict_removed)

    @property
    def contract(self) -> Contract:
        """The typed contract of the bundle's graphs."""
        return Contract.from_json(self.manifest.contract)

    @property
    def canonical_focal(self) -> float:
        """The focal length for which depth is in metres [pixels of the network's input]; 0: for any.

        The training record has it if the network was trained with --canonical-focal.
        """
        recorded = self.manifest.training.get("canonical_focal")
        return float(recorded) if isinstance(recorded, int | float) and 0 < recorded < math.inf else 0.0

    @property
    def name(self) -> str:
        """The bundle's name. By default, that of the checkpoint."""
        return self.manifest.name

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """All files, in manifest order."""
        return self.manifest.artifacts

    @property
    def remake_command(self) -> str:
        """The shell line that makes the bundle again, with the options at their defaults."""
        return shlex.join([*self._make_words(), "--out", str(self.folder)])

    def _make_words(self) -> list[str]:
        command = "export.importing" if self.manifest.imported else "export"
        described_by = self.manifest.options.get(DESCRIBED_BY) if self.manifest.imported else None
        return ["python", "-m", f"dpt_deploy.{command}", self.manifest.checkpoint.file,
                *(["--description", str(described_by)] if described_by else [])]

    def last_report(self) -> ParityReport | None:
        """The parity report of the last run. None if there is none or it is not readable."""
        try:
            return ParityReport.from_json(parse_json((self.folder / PARITY_JSON).read_text(encoding="utf-8")))
        except (OSError, ValueError):
            return None

    def unjudged(self, artifact: Artifact) -> str:
        """Why no parity verdict covers an artefact, with the command that gives one, or "" if one does."""
        report = self.last_report() if self.find("report", file=PARITY_JSON) else None
        if report is not None and any(stage.sha256 == artifact.sha256 for stage in report.stages):
            return ""
        what = f"the bundle's parity verdict does not cover {artifact.file}" if report is not None else \
            "the bundle has no parity verdict, because its export was interrupted or its graphs were replaced"
        if self.manifest.imported and not self.find("reference"):
            return (f"the bundle around {self.manifest.checkpoint.file} has no parity verdict; make one with: "
                    f"{shlex.join(self._make_words())}")
        return f"{what}; judge it with: python -m dpt_deploy.parity {self.folder}"

    def find(self, kind: Kind, **wanted: Any) -> list[Artifact]:
        """Artefacts of `kind` whose fields, or fields of `details`, equal `wanted`, in manifest order."""
        return [
            artifact for artifact in self.artifacts
            if artifact.kind == kind
            and all(getattr(artifact, key, getattr(artifact.details, key, None)) == value
                    for key, value in wanted.items())
        ]

    def path(self, artifact: Artifact) -> Path:
        """The path of an artefact after checking its file, its external data and, of a graph, the embedded contract.

        Raises:
            BadBundle: A file is missing, not listed, outside the folder, or does not match its hash.
            ContractError: A graph embeds no contract, or another one than the manifest.
        """
        if (fault := self._fault(artifact)) is not None:
            raise type(fault)(f"{self.folder}/{fault}. {self._remedy(artifact)}")
        return self.folder / artifact.file

    def damage(self, artifact: Artifact) -> str | None:
        """Why `path` would refuse an artefact, starting with a file's name, or None."""
        fault = self._fault(artifact)
        return None if fault is None else str(fault)

    def intact(self, artifact: Artifact) -> bool:
        """Whether `path` would accept an artefact."""
        return self._fault(artifact) is None

    def _fault(self, artifact: Artifact) -> DptError | None:
        if (fault := self._file_fault(artifact)) is not None or artifact.kind != "onnx":
            return fault
        try:
            graph = read_onnx_file(self.folder / artifact.file)
        except ValueError as error:
            return BadBundle(f"{artifact.file} is not a valid ONNX file: {error}")
        listed = {part.file: part for part in self.artifacts}
        for name in {*graph.external, *({f"{artifact.file}.data"} & listed.keys())}:
            if name not in listed:
                return BadBundle(f"{artifact.file} reads weights from {name!r}, which {MANIFEST} does not list")
            if (fault := self._file_fault(listed[name])) is not None:
                return fault
        try:
            embedded = Contract.from_json(parse_json(graph.metadata["contract"]))
        except KeyError:
            return ContractError(f"{artifact.file}: the graph embeds no contract")
        except (BadInput, ValueError) as error:
            return ContractError(f"{artifact.file}: the contract embedded in the graph is not valid "
                                 f"({error!s:.500})")
        if embedded != self.contract:
            return ContractError(
                f"{artifact.file}: the contract embedded in the graph differs from the one in {MANIFEST}")
        return None

    def _file_fault(self, part: Artifact) -> DptError | None:
        path = self.folder / part.file
        if not os.path.isfile(path):  # also where the name is too long
            return BadBundle(f"{part.file:.200} is missing from the bundle")
        if path.is_symlink() and path.resolve().parent not in self._places():
            return BadBundle(f"{part.file} is a symbolic link to a file outside the bundle; copy the bundle with "
                             "cp -rL")
        received = sha256(path) if path.stat().st_size == part.bytes else None
        if received != part.sha256:
            return BadBundle(f"{part.file} does not match {MANIFEST} (expected SHA-256 {part.sha256[:12]}...): the "
                             "file was modified, truncated or replaced")
        return None

    def _places(self) -> set[Path]:
        """The folders that files may lie in: the bundle's own.

        In the cache of the Hugging Face Hub, whose snapshots/COMMIT holds links, also blobs beside snapshots.
        """
        here = self.folder.resolve()
        snapshots = next((place for place in here.parents if place.name == "snapshots"), None)
        blobs = {snapshots.parent / "blobs"} if snapshots and snapshots.parent.name.startswith("models--") else set()
        return {here} | blobs

    def has(self, recipe: Recipe) -> bool:
        """Whether `produce` would reuse the file of a recipe."""
        return self._reusable(recipe) is not None

    def _reusable(self, recipe: Recipe) -> Artifact | None:
        return next((artifact for artifact in self.artifacts if artifact.file == recipe.file
                     and artifact.key == recipe.key and self.intact(artifact)), None)

    def produce(self, recipe: Recipe) -> tuple[Artifact, bool]:
        """Produce or reuse the file of a recipe and register it. Returns the artefact and whether it was reused."""
        if (artifact := self._reusable(recipe)) is not None:
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
        parts = [artifact]
        if kind == "onnx":
            if any(before.sha256 != artifact.sha256 for before in self.find("onnx", file=file)):
                self._forget_verdict()
            parts += [self._described(name, "data") for name in self._data_files(file)]
        replaced = {file, f"{file}.data", *(part.file for part in parts)} if kind == "onnx" else {file}
        self.update(artifacts=(*(a for a in self.artifacts if a.file not in replaced), *parts))
        self._written |= {part.file for part in parts}
        self.save()
        return artifact

    def discard(self) -> None:
        """Delete the files that this object wrote, its manifest, and the folder if nothing else is in it."""
        for file in {*self._written, *(set(VERDICT_FILES) - self._before)}:
            (self.folder / file).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder has other files, or was never made
            self.folder.rmdir()

    def remove(self, artifact: Artifact) -> None:
        """Delete an artefact and its external data. Removing a graph also removes the verdict."""
        data: set[str] = set()
        if artifact.kind == "onnx":
            data = {*self._data_files(artifact.file), f"{artifact.file}.data"}
            for other in self.find("onnx"):
                data -= set(self._data_files(other.file)) if other.file != artifact.file else set()
        self._forget([artifact, *(part for part in self.find("data") if part.file in data)])
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
        self._written.add(MANIFEST)
        listed = {artifact.file for artifact in self.artifacts}
        while self._stale:
            # A model card may contain hand-written text, so `on_verdict_removed` decides what to do with it.
            if (file := self._stale.pop()) not in listed and file != MODEL_CARD:
                (self.folder / file).unlink(missing_ok=True)
        if verdict_removed:
            self._on_verdict_removed(self)

    def _described(self, file: str, kind: Kind, **fields: Any) -> Artifact:
        path = self.folder / file
        known = {"reproducible": REPRODUCIBLE[kind]} if kind in REPRODUCIBLE else {}
        return Artifact(file=file, kind=kind, sha256=sha256(path), bytes=path.stat().st_size, **known, **fields)

    def _data_files(self, file: str) -> list[str]:
        """The existing files in the folder that hold weights of an ONNX file."""
        names = [f"{file}.data"]
        with contextlib.suppress(OSError, ValueError):  # `path` refuses a file that is not valid
            names += [name for name in read_onnx_file(self.folder / file).external if name not in names]
        return [name for name in names if Path(name).name == name and (self.folder / name).is_file()]

    def _forget_verdict(self) -> None:
        self._forget([artifact for artifact in self.artifacts if artifact.file in VERDICT_FILES])

    def _forget(self, gone: list[Artifact]) -> None:
        self._stale += [artifact.file for artifact in gone]
        self.update(artifacts=tuple(artifact for artifact in self.artifacts if artifact not in gone))

    def _remedy(self, artifact: Artifact | None = None) -> str:
        if artifact is not None and artifact.kind == "engine":
            return f"Build it again: python -m dpt_deploy.build {self.folder}"
        return f"{'Import' if self.manifest.imported else 'Export'} again: {self.remake_command}"
