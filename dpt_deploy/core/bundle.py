"""One export's folder: the manifest, a hash for every file, and the way to each artefact.

The manifest is the only description; engines and graphs stay in their own formats, so that trtexec,
Triton and ONNX tools read them as they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .contract import Contract
from .errors import BadBundle, BadInput, ContractError
from .files import sha256, write_json, write_text

MANIFEST = "manifest.json"
RECORD, PAGE, CARD = "parity.json", "report.html", "MODEL_CARD.md"  # the verdict on the files beside them
HAND = "<!-- Below this line is yours: it is kept when the card is written again. -->"
FORMAT = 1

Kind = Literal["onnx", "data", "engine", "cache", "reference", "report"]


@dataclass(frozen=True)
class Artifact:
    """One file of a bundle, as the manifest describes it."""

    file: str
    """Name within the bundle's folder."""
    kind: Kind
    sha256: str
    bytes: int
    graph: str | None = None
    """model or frame; None for what is neither."""
    precision: str | None = None
    """fp32, fp16 or bf16: the type of most of the graph's arithmetic."""
    key: str | None = None
    """Hash of everything this file was made from; equal keys make a second run reuse the file."""
    details: dict[str, Any] = field(default_factory=dict)
    """Precision plan and opset of a graph; builder, version, profile and GPU of an engine."""


def _origin(header: dict[str, Any]) -> str:
    """What all files of a bundle are made from; the checkpoint's name is none of it."""
    checkpoint = header.get("checkpoint", {}).get("sha256")
    return json.dumps([checkpoint, header.get("contract"), header.get("model")], sort_keys=True)


def by_hand(card: str) -> str:
    """What people wrote into a model card: all that follows `HAND`; without that line its last sections, or all."""
    _, line, below = card.partition(HAND)
    if not line:
        _, line, below = card.partition("\n## Licences\n")
        below = line + below if line else card
    return below.lstrip("\n")


class Bundle:
    """A bundle's manifest and files. `Bundle.create` and `Bundle.open` make one."""

    def __init__(self, folder: Path, header: dict[str, Any], artifacts: list[Artifact]) -> None:
        self.folder = folder
        self.header = header
        self.artifacts = artifacts
        self.previous: dict[str, Any] = {}
        """The header that an earlier run left in the folder, {} where there was none."""
        self._stale: list[str] = []

    @classmethod
    def create(cls, folder: Path | str, header: dict[str, Any]) -> Bundle:
        """A bundle in `folder` with `header`; keeps what a manifest that is there already lists, and is still right.

        Made from another checkpoint, contract or model, only a builder's timings are: the rest is
        forgotten here and deleted by the first `save`, so that no bundle is ever named for one checkpoint
        and holds files of another. `header` holds name, contract, model, checkpoint, training, options,
        versions and command, as plain JSON values. Nothing is written before the first `add` or `save`.
        """
        folder = Path(folder)
        if folder.exists() and not folder.is_dir():
            raise BadInput(f"--out: expected a folder for the bundle, received the file {folder}. Choose another.")
        bundle = cls(folder, header, [])
        if (folder / MANIFEST).exists():
            # A manifest that cannot be read is replaced: nothing of it could be reused.
            with contextlib.suppress(BadBundle):
                earlier = cls.open(folder)
                bundle.artifacts, bundle.previous = earlier.artifacts, earlier.header
                if _origin(header) != _origin(earlier.header):
                    bundle._forget([artifact for artifact in bundle.artifacts if artifact.kind != "cache"])
        return bundle

    @classmethod
    def open(cls, folder: Path | str) -> Bundle:
        """Read the manifest in `folder`. Raises `BadBundle`; file hashes are checked by `path`."""
        folder = Path(folder)
        manifest = folder / MANIFEST
        if not manifest.is_file():
            what = "there is no such folder" if not folder.exists() else f"it has no {MANIFEST}"
            raise BadBundle(
                f"{folder}: expected a bundle, but {what}. Make one with: python -m dpt_deploy.export best_model.pth"
            )
        try:
            content = json.loads(manifest.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise BadBundle(
                    f"{manifest}: expected format {FORMAT}, received {content['format']}. Export the checkpoint again "
                    "with this version of dpt-deploy, or install the version that wrote it."
                )
            artifacts = [Artifact(**entry) for entry in content.pop("artifacts")]
            if outside := [a.file for a in artifacts if Path(a.file).name != a.file or a.file in ("", ".", "..")]:
                raise ValueError(f"{outside[0]!r} is no name of a file in the bundle's folder")
            Contract.from_json(content["contract"])
        except (ValueError, KeyError, TypeError, AttributeError, BadInput) as error:
            raise BadBundle(
                f"{manifest}: expected a manifest of format {FORMAT}, but it cannot be read "
                f"({type(error).__name__}: {error}). Export the checkpoint again."
            ) from error
        return cls(folder, content, artifacts)

    @property
    def contract(self) -> Contract:
        """What goes in and what comes out."""
        return Contract.from_json(self.header["contract"])

    @property
    def name(self) -> str:
        """The bundle's name, by default the checkpoint's."""
        return self.header["name"]

    def find(self, kind: Kind, **wanted: Any) -> list[Artifact]:
        """Artefacts of `kind` whose fields (or entries of `details`) equal `wanted`, in manifest order."""
        return [
            artifact for artifact in self.artifacts
            if artifact.kind == kind
            and all(getattr(artifact, key, artifact.details.get(key)) == value for key, value in wanted.items())
        ]

    def path(self, artifact: Artifact) -> Path:
        """The artefact's file, after checking its hash and that of its external data.

        Raises `BadBundle` when a file is missing or is not the one that the manifest describes.
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

    def reusable(self, file: str, key: str) -> Artifact | None:
        """The artefact `file`, if it was made from `key` and is intact."""
        return next((a for a in self.artifacts if a.file == file and a.key == key and self.intact(a)), None)

    def add(self, file: str, kind: Kind, **fields: Any) -> Artifact:
        """Describe a file that now lies in the folder, with a graph its external data, and save the manifest.

        Another graph than the one that had this name ends the verdict on it.
        """
        artifact = self._described(file, kind, **fields)
        if kind == "onnx":
            before = [a.sha256 for a in self.find("onnx", file=file)]
            if before and before != [artifact.sha256]:
                self._forget_verdict()
            self.artifacts = [a for a in self.artifacts if a.file != f"{file}.data"]
        self.artifacts = [a for a in self.artifacts if a.file != file] + [artifact]
        if kind == "onnx" and (self.folder / f"{file}.data").exists():
            self.artifacts.append(self._described(f"{file}.data", "data"))
        self.save()
        return artifact

    def remove(self, artifact: Artifact) -> None:
        """Forget an artefact and delete its files; with a graph, the verdict."""
        self._forget([artifact, *self.find("data", file=f"{artifact.file}.data")])
        if artifact.kind == "onnx":
            self._forget_verdict()
        self.save()

    def _described(self, file: str, kind: Kind, **fields: Any) -> Artifact:
        path = self.folder / file
        return Artifact(file=file, kind=kind, sha256=sha256(path), bytes=path.stat().st_size, **fields)

    def _forget_verdict(self) -> None:
        self._forget([artifact for artifact in self.artifacts if artifact.file in (RECORD, PAGE, CARD)])

    def _forget(self, gone: list[Artifact]) -> None:
        self._stale += [artifact.file for artifact in gone]
        self.artifacts = [artifact for artifact in self.artifacts if artifact not in gone]

    def save(self) -> None:
        """Write the manifest, atomically, and delete what was forgotten; of a model card what people wrote stays."""
        card = self.folder / CARD
        if CARD in self._stale and card.is_file():
            kept = by_hand(card.read_text(encoding="utf-8", errors="replace"))
            write_text(card, f"# {self.name}\n\nNot judged yet.\n\n{HAND}\n{kept}")
            self.artifacts.append(self._described(CARD, "report"))
        entries = [dataclasses.asdict(artifact) for artifact in self.artifacts]
        write_json(self.folder / MANIFEST, {"format": FORMAT} | self.header | {"artifacts": entries})
        listed = {artifact.file for artifact in self.artifacts}
        while self._stale:
            if (file := self._stale.pop()) not in listed:
                (self.folder / file).unlink(missing_ok=True)

    def check_contract(self, contract: dict[str, Any] | None, file: str) -> None:
        """Raise `ContractError` unless the contract inside an ONNX file is the manifest's."""
        if contract is not None and Contract.from_json(contract) != self.contract:
            raise ContractError(f"{self.folder / file} carries another contract than {MANIFEST}. {self._remedy()}")

    def _remedy(self, artifact: Artifact | None = None) -> str:
        if artifact is not None and artifact.kind == "engine":
            return f"Build it again: python -m dpt_deploy.build {self.folder}"
        source = self.header.get("checkpoint", {}).get("file", "best_model.pth")
        return f"Export again: python -m dpt_deploy.export {source} --out {self.folder}"
