"""A bundle around a foreign ONNX model: its adapted model graph, and a manifest that says where it comes from."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..core import manifest
from ..core.bundle import DESCRIBED_BY, Bundle
from ..core.contract import Contract
from ..core.errors import BadInput, DptError, MissingPackage, first_line
from ..core.files import cannot_write, existing_file, locked, replacing, sha256, temporary_folder, user_cache
from ..core.manifest import Assumption, Manifest
from ..core.onnx_file import read_onnx_file
from ..core.plan import PrecisionPlan
from ..core.version import __version__
from .adapt import adapt, guess, needs_description, opset_of, output_names
from .describe import PRESETS, Description, Found, describe, find_description
from .graph import check_output, inferred_outputs, measured, onnx_package, run, session_of

if TYPE_CHECKING:
    import onnx

FORMAT = 2  # of adapted graphs: raising it makes them again
LARGEST = 1_900_000_000
"""Bytes of a model with its weights, so that it can be read as one message."""


@dataclass(frozen=True)
class ForeignFile:
    """A foreign ONNX file that was read."""

    path: Path
    model: onnx.ModelProto
    """With its weights."""
    sha256: str
    """Of the file; if others hold weights of it, of their names and contents too."""


def read_foreign(path: Path) -> ForeignFile:
    """Read an ONNX file with its weights.

    Raises:
        BadInput: The file, or one with weights, is missing, not valid or too large.
        MissingPackage: onnx is not installed.
    """
    existing_file(path, "an ONNX file")
    onnx = onnx_package("read a foreign model")
    try:
        weights = {name: _beside(path, name) for name in read_onnx_file(path).external}
        size = sum(file.stat().st_size for file in (path, *weights.values()))
        if size > LARGEST:
            raise BadInput(f"{path}: expected a model of less than {LARGEST / 1e9:.1f} GB with its weights, received "
                           f"{size / 1e9:.1f} GB. Export it in a smaller size or in half precision.")
        digest = sha256(path)
        if weights:
            facts = [digest, *(f"{name} {sha256(file)}" for name, file in weights.items())]
            digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()
        model = onnx.load(path)
    except BadInput:
        raise
    except Exception as error:  # protobuf and onnx raise exceptions of many types
        raise BadInput(f"{path}: expected an ONNX file, received one that cannot be read ({first_line(error)}). Export "
                       "the model again.") from error
    if not model.graph.node:
        raise BadInput(f"{path}: expected an ONNX model, received a graph without nodes.")
    return ForeignFile(path, model, digest)


def found_description(source: ForeignFile, stated: Description | Path | str | None) -> Found:
    """The description that is stated, that comes with the file, or that the shapes suggest.

    Raises:
        BadInput: There is none, or it is not valid.
    """
    if isinstance(stated, Description):
        return Found(stated, "the program")
    if stated is not None:
        name = str(stated) if str(stated) in PRESETS else Path(stated).name
        return Found(describe(stated), name, option=name)
    model = source.model
    found = find_description(source.path, {entry.key: entry.value for entry in model.metadata_props}) or guess(model)
    if found is None:
        raise needs_description(str(source.path), model)
    return found


def create_bundle(folder: Path, source: ForeignFile, found: Found, command: str = "") -> tuple[Bundle, Contract]:
    """Write a bundle with the adapted model graph in FP32. Returns it with its contract.

    Args:
        folder: The bundle's folder.
        source: The foreign ONNX file.
        found: Its description.
        command: The shell line to record in the manifest.

    Raises:
        BadInput: The model does not fit the description.
    """
    onnx = onnx_package("adapt a foreign model")
    adapted, contract = adapt(source.model, found.description, source.path.name)
    assumed = ()
    if found.guessed:
        assumed = (Assumption(fact="description", value="david", reason=f"from {found.source}",
                              option="--description"),)
    bundle = Bundle.create(folder, Manifest(
        name=source.path.stem, command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        checkpoint=manifest.Checkpoint(file=source.path.name, sha256=source.sha256),
        model=manifest.ModelRecord(backbone="foreign"), contract=contract.to_json(), assumed=assumed,
        options={"description": found.description.to_json()} | ({DESCRIBED_BY: found.option} if found.option else {}),
        versions={"dpt-deploy": __version__, "onnx": importlib.metadata.version("onnx")},
    ))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.fp32.onnx") as temporary:
        onnx.save(adapted, temporary)
    details = {"opset": opset_of(adapted), "plan": PrecisionPlan("fp32", ()).to_json()}
    bundle.add("model.fp32.onnx", "onnx", graph="model", precision="fp32", details=details)
    return bundle, contract


def cached_bundle(path: Path, stated: Description | Path | str | None = None) -> Path:
    """The folder of a bundle around a foreign ONNX file, in the user's cache; made if it is not there yet.

    Before it is made, the file runs once in ONNX Runtime, and its outputs must be maps of the input's size.

    Raises:
        BadInput: The file is not an ONNX model, nothing describes it, or it does not fit its description.
        MissingPackage: onnx is not installed, or onnxruntime is not and the graph does not tell its outputs' sizes.
    """
    source = read_foreign(path)
    found = found_description(source, stated)
    facts = [__version__, FORMAT, path.stem, source.sha256, found.description.model_dump_json(), found.guessed]
    folder = _cache() / hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    if _intact(folder):
        return folder
    try:
        with locked(folder.parent, create=True, wait=True):
            if _intact(folder):  # another process made it meanwhile, and may have loaded it
                return folder
            with temporary_folder(folder) as temporary:
                _, contract = create_bundle(temporary / "bundle", source, found)
                _check_run(source, found.description, contract)
                shutil.rmtree(folder, ignore_errors=True)
                os.rename(temporary / "bundle", folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def _beside(path: Path, name: str) -> Path:
    """A file with weights of the ONNX file at `path`, by its name in there."""
    inside = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not inside or not (path.parent / name).is_file():
        raise BadInput(f"{path}: expected its weights in the file {name!r:.200} beside it, received no such file. Copy "
                       "it there, or export the model again.")
    return path.parent / name


def _check_run(source: ForeignFile, description: Description, contract: Contract) -> None:
    """Raise `BadInput` unless the outputs of a run are maps of the input's size."""
    size, where = contract.input_size, source.path.name
    names = output_names(source.model, description, where)
    try:
        session = session_of(source.path)
    except MissingPackage:
        known = {value.name: value for value in inferred_outputs(source.model, size)}
        if any(known[name].dtype is None or None in (known[name].shape or (1, None))[1:] for name in names.values()):
            raise
        return
    outputs = run(session, np.zeros((1, 3, *size), np.float32), where)
    for head, name in names.items():
        check_output(head, measured(name, outputs[name]), description, size, where)


def _intact(folder: Path) -> bool:
    try:
        bundle = Bundle.open(folder)
        return all(bundle.intact(graph) for graph in bundle.find("onnx")) and bool(bundle.find("onnx", graph="model"))
    except DptError:
        return False


def _cache() -> Path:
    folder = user_cache()
    if folder is None:
        raise BadInput("expected a folder for the adapted model, but this user has no home folder. Set XDG_CACHE_HOME, "
                       "or import the model: python -m dpt_deploy.export.importing MODEL.onnx")
    return folder / "foreign"
