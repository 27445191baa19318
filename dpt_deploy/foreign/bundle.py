"""A bundle around a foreign ONNX model: its adapted model graph, and a manifest that says where it comes from."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import importlib.metadata
import os
import shutil
import tempfile
from pathlib import Path

from ..core import manifest
from ..core.bundle import Bundle
from ..core.contract import Contract
from ..core.errors import BadInput, DptError, first_line
from ..core.files import cannot_write, replacing, sha256, temporary_folder
from ..core.manifest import Assumption, Manifest
from ..core.plan import PrecisionPlan
from ..core.version import __version__
from .adapt import _onnx, adapt, guess, needs_description
from .describe import PRESETS, Description, Found, describe, find_description

FORMAT = 1  # of adapted graphs: raising it makes them again
LARGEST = 1_900_000_000
"""Bytes of the weights, with which a model is read as one message."""


def read_model(path: Path):
    """The ONNX model of a file, with its weights. Raises `BadInput` if it cannot be read."""
    onnx = _onnx("read a foreign model")
    if not path.is_file():
        raise BadInput(f"expected an ONNX file, but there is no file {path}.")
    try:
        model = onnx.load(path)
    except Exception as error:  # protobuf and onnx raise exceptions of many types
        raise BadInput(f"{path}: expected an ONNX file, received one that cannot be read ({first_line(error)}).") \
            from error
    if model.ByteSize() > LARGEST:
        raise BadInput(f"{path}: expected weights of less than 1.9 GB, received {model.ByteSize() / 1e9:.1f} GB.")
    if not model.graph.node:
        raise BadInput(f"{path}: expected an ONNX model, received a graph without nodes.")
    return model


def found_description(path: Path, model, stated: Description | Path | str | None) -> Found:
    """The description that is stated, that comes with the file, or that the shapes suggest.

    Raises:
        BadInput: There is none, or it is not valid.
    """
    if isinstance(stated, Description):
        return Found(stated, "the program")
    if stated is not None:
        return Found(describe(stated), str(stated) if str(stated) in PRESETS else Path(stated).name)
    found = find_description(path, {entry.key: entry.value for entry in model.metadata_props}) or guess(model)
    if found is None:
        raise needs_description(str(path), model)
    return found


def create_bundle(
    folder: Path, path: Path, found: Found, command: str = "", model=None
) -> tuple[Bundle, Contract]:
    """Write a bundle with the adapted model graph in FP32. Returns it with its contract.

    Args:
        folder: The bundle's folder.
        path: The foreign ONNX file.
        found: Its description.
        command: The shell line to record in the manifest.
        model: The content of `path`, if it was read already.
    """
    onnx = _onnx("adapt a foreign model")
    adapted, contract = adapt(model if model is not None else read_model(path), found.description, path.name)
    assumed = ()
    if found.guessed:
        assumed = (Assumption(fact="description", value="david", reason=f"from {found.source}",
                              option="--description"),)
    digest = sha256(path)
    bundle = Bundle.create(folder, Manifest(
        name=path.stem, command=command,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        checkpoint=manifest.Checkpoint(file=path.name, sha256=digest),
        model=manifest.ModelRecord(backbone="foreign"), contract=contract.to_json(), assumed=assumed,
        options={"description": found.description.model_dump(mode="json", exclude_none=True)},
        versions={"dpt-deploy": __version__, "onnx": importlib.metadata.version("onnx")},
    ))
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "model.fp32.onnx") as temporary:
        onnx.save(adapted, temporary)
    opset = max(entry.version for entry in adapted.opset_import if entry.domain in ("", "ai.onnx"))
    details = {"opset": opset, "plan": PrecisionPlan("fp32", ()).to_json()}
    bundle.add("model.fp32.onnx", "onnx", graph="model", precision="fp32", details=details)
    return bundle, contract


def cached_bundle(path: Path, stated: Description | Path | str | None = None) -> Path:
    """The folder of a bundle around a foreign ONNX file, in the user's cache; made if it is not there yet.

    Raises:
        BadInput: The file is not an ONNX model, or nothing describes it.
        MissingPackage: onnx is not installed.
    """
    model = read_model(path)
    found = found_description(path, model, stated)
    facts = [__version__, FORMAT, path.stem, sha256(path), found.description.model_dump_json(), found.guessed]
    folder = _cache() / hashlib.sha256(repr(facts).encode()).hexdigest()[:32]
    if _intact(folder):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(folder) as temporary:  # processes that load the model at once do not meet
            create_bundle(temporary / "bundle", path, found, model=model)
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # another one was faster
                os.rename(temporary / "bundle", folder)
            if not _intact(folder):
                raise OSError(f"{folder} could not be replaced")
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def _intact(folder: Path) -> bool:
    try:
        bundle = Bundle.open(folder)
        return all(bundle.intact(graph) for graph in bundle.find("onnx")) and bool(bundle.find("onnx", graph="model"))
    except DptError:
        return False


def _cache() -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME", ""))
    with contextlib.suppress(RuntimeError):  # no home folder
        # The specification ignores relative paths.
        return (root if root.is_absolute() else Path.home() / ".cache") / "dpt-deploy" / "foreign"
    return Path(tempfile.gettempdir()) / f"dpt-deploy-{os.getuid()}" / "foreign"
