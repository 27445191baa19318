"""Write a Triton model repository from a bundle: the graph or plan that the server loads, and its `config.pbtxt`."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..backends.engines import EngineProfile
from ..core.bundle import PARITY_JSON, Bundle
from ..core.compact import FORMS, Form, form
from ..core.errors import BadBundle, BadInput, ContractError
from ..core.files import cannot_write, locked, temporary_folder, write_text
from ..core.manifest import Artifact, Precision
from ..core.version import __version__
from .compact_graph import write_compact_graph
from .config_pbtxt import Device, ModelConfig, ServedBy

CONFIG = "config.pbtxt"
OURS = "dpt_graph_sha256"
"""The parameter by which a model of this project is known."""
MAX_PIXELS = 2160 * 3840
"""Default of the pixels of a request: those of an engine's default profile."""
MAX_BATCH = 8
BUNDLE = "bundle"
"""Folder of the bundle's files that the Python backend reads, beside model.py."""
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class ServeOptions:
    """How a bundle is served."""

    name: str | None = None
    """The model's name. Default: the bundle's."""
    served_by: Literal["auto", "tensorrt", "onnxruntime", "python"] = "auto"
    precision: Precision | None = None
    forms: tuple[Form, ...] = ()
    """Outputs to add to the float32 maps."""
    max_batch: int | None = None
    max_pixels: int | None = None
    sizes: tuple[tuple[int, int], ...] = ((480, 640),)
    """Frame sizes of the warm-up, (height, width) [pixels]."""
    instances: int = 1
    device: Device = "auto"
    backend: str | None = None
    """The runtime's backend, for the Python backend alone."""
    threads: int | None = None
    delay: float = 2.0
    queue: int = 256
    version: int = 1


@dataclass(frozen=True)
class Served:
    """A model that was written."""

    folder: Path
    """The model's folder in the repository."""
    artifact: Artifact
    """The plan or graph that is served."""
    config: ModelConfig
    notes: tuple[str, ...] = ()
    """What to know before starting the server, one sentence each."""


def write_repository(bundle: Bundle, out: Path, options: ServeOptions | None = None) -> Served:
    """Write a model of `bundle` into the model repository `out`, which is created if need be.

    A model of the same name that this function wrote is replaced; other models in the repository stay as they are.

    Raises:
        BadInput: An option does not fit the bundle, or `out` has a model of the same name from elsewhere.
        BadBundle, ContractError: A file does not match the manifest, or the bundle has nothing to serve.
        MissingPackage: Compact forms need onnx, which is not installed.
    """
    options = options or ServeOptions()
    name = options.name or re.sub(r"[^A-Za-z0-9_.-]", "_", bundle.name)
    if not NAME.fullmatch(name):
        raise BadInput(f"--name: expected letters, digits, '_', '-' and '.', received {name!r:.100}.")
    served_by, artifact = _choose(bundle, options)
    config = _config(bundle, options, name, served_by, artifact)
    path = bundle.path(artifact)
    with locked(out, create=True):
        folder = Path(out) / name
        _check_ours(folder)
        with _replaced(folder / str(options.version)) as version:
            if served_by == "tensorrt":
                _copy(path, version / "model.plan")
            elif served_by == "onnxruntime":
                _write_graph(bundle, path, version, _added(options.forms))
            else:
                _copy(Path(__file__).with_name("model.py"), version / "model.py")
                _write_bundle(bundle, artifact, version / BUNDLE)
        write_text(folder / CONFIG, config.text())
    return Served(folder, artifact, config, tuple(_notes(bundle, options, served_by, artifact)))


def _choose(bundle: Bundle, options: ServeOptions) -> tuple[ServedBy, Artifact]:
    """What loads the model, and which artefact: for the Python backend, the frame graph whose maps it gives."""
    graphs = {one.precision: one for one in bundle.find("onnx", graph="frame")}
    plans = {one.precision: one for one in bundle.find("engine", graph="frame", builder="tensorrt")
             if one.details.weights != "stripped"}
    wanted = options.served_by
    if wanted == "auto":
        usable = plans and (options.precision is None or options.precision in plans) and not _added(options.forms)
        wanted = "tensorrt" if usable and options.device != "cpu" else "onnxruntime"
        if options.backend is not None:
            wanted = "python"
    if options.backend is not None and wanted != "python":
        raise BadInput("--backend: expected --serve python, which runs this project's runtime, received "
                       f"--serve {wanted}.")
    if wanted == "tensorrt":
        if options.device == "cpu":
            raise BadInput("--device: expected gpu or auto for a TensorRT plan, received cpu.")
        if _added(options.forms):
            raise BadInput(
                "--compact: a TensorRT plan has the outputs that it was built with, and TensorRT has no 16-bit "
                "integers. Serve the graph with --serve onnxruntime, or the engine with --serve python.")
        return "tensorrt", _of_precision(plans, options.precision, ("fp16", "bf16", "fp32"), bundle, "TensorRT plan")
    half_first = ("fp16", "fp32") if options.device == "gpu" else ("fp32", "fp16")
    return wanted, _of_precision(graphs, options.precision, half_first, bundle, "ONNX file of the frame graph")


def _of_precision(
    found: dict[str | None, Artifact], wanted: Precision | None, order: tuple[str, ...], bundle: Bundle, what: str
) -> Artifact:
    for precision in (wanted,) if wanted else order:
        if precision in found:
            return found[precision]
    has = ", ".join(sorted(filter(None, found))) or "none"
    remedy = f"python -m dpt_deploy.build {bundle.folder}" if "plan" in what else bundle.remake_command
    raise BadInput(f"{bundle.folder}: expected a {what}{f' in {wanted}' if wanted else ''}, and the bundle has {has}. "
                   f"Make one with: {remedy}")


def _config(bundle: Bundle, options: ServeOptions, name: str, served_by: ServedBy, artifact: Artifact) -> ModelConfig:
    forms = tuple(form(head, "float32") for head in bundle.contract.heads)
    for one in options.forms:
        if one.head not in bundle.contract.heads:
            raise BadInput(f"--compact: the bundle has no head {one.head}; it has {', '.join(bundle.contract.heads)}.")
        if one.name == "uint16-mm" and bundle.contract.depth != "metric":
            raise BadInput("--compact: expected depth in metres for depth=uint16-mm, received a bundle with relative "
                           "depth. Use depth=float16.")
    max_batch, max_pixels = options.max_batch or MAX_BATCH, options.max_pixels or MAX_PIXELS
    if served_by == "tensorrt":
        max_batch, max_pixels = _limits(options, EngineProfile.of(artifact))
    warm_up = []
    for height, width in options.sizes:
        fits = max_pixels // (height * width)
        if not fits:
            raise BadInput(f"--sizes: {height}x{width} has more pixels than a request may have, {max_pixels}.")
        largest = 1 if options.device == "cpu" else max_batch
        warm_up += [(batch, height, width) for batch in sorted({1, min(largest, fits)})]
    if served_by == "tensorrt":
        for shape in warm_up:
            EngineProfile.of(artifact).check({"frame": (*shape, 3)}, "Choose other --sizes.")
    graph = next((one for one in bundle.find("onnx", graph="frame", precision=artifact.precision)), artifact)
    parameters = {
        "dpt_version": __version__, "dpt_bundle": bundle.name, "dpt_graph": graph.file,
        OURS: (artifact.details.made_from if artifact.kind == "engine" else None) or graph.sha256,
        "dpt_precision": artifact.precision or "fp32", "dpt_depth": bundle.contract.depth,
        "max_pixels": str(max_pixels),
    }
    if bundle.canonical_focal:
        parameters |= _canonical_parameters(bundle)
    if served_by == "python":
        parameters |= {"backend": options.backend or "", "threads": str(options.threads or "")}
    elif served_by == "onnxruntime" and options.threads:
        parameters["intra_op_thread_count"] = str(options.threads)
    device = "gpu" if served_by == "tensorrt" else options.device
    return ModelConfig(name, served_by, (*forms, *_added(options.forms)), max_batch, tuple(warm_up), options.instances,
                       device, options.delay, options.queue, parameters)


def _canonical_parameters(bundle: Bundle) -> dict[str, str]:
    """The canonical focal length [pixels of the network's input], and what gives it in pixels of a frame."""
    height, width = bundle.contract.input_size
    return {"dpt_canonical_focal": repr(bundle.canonical_focal), "dpt_input_size": f"{height}x{width}",
            "dpt_resize": bundle.contract.resize}


def _limits(options: ServeOptions, profile: EngineProfile) -> tuple[int, int]:
    """The largest batch and the most pixels of a request that a plan takes."""
    shapes = profile.ranges["frame"]
    if shapes.min[0] > 1:
        raise BadInput(f"{profile.file}: expected a plan that takes one frame, received one for {shapes.min[0]} or "
                       "more. Build it with --batch-range 1,8.")
    max_batch, most = options.max_batch or shapes.max[0], profile.max_pixels or MAX_PIXELS
    if max_batch > shapes.max[0]:
        raise BadInput(f"--max-batch: {profile.file} takes batches up to {shapes.max[0]}, received {max_batch}. "
                       f"Build it with --batch-range 1,{max_batch}.")
    if (options.max_pixels or 0) > most:
        raise BadInput(f"--max-pixels: {profile.file} takes up to {most} pixels, received {options.max_pixels}. "
                       "Build it with a larger --frame-size-range.")
    return max_batch, options.max_pixels or most


def _added(forms: tuple[Form, ...]) -> tuple[Form, ...]:
    """The forms that are not float32, in the order of the heads."""
    return tuple(one for known in FORMS.values() for one in known.values() if one in forms and not one.plain)


def _notes(bundle: Bundle, options: ServeOptions, served_by: ServedBy, artifact: Artifact) -> Iterator[str]:
    if unjudged := bundle.unjudged(artifact):
        yield f"{artifact.file} was never judged: {unjudged}."
    report = bundle.last_report()
    if report is not None and artifact.sha256 in {stage.sha256 for stage in report.failed}:
        yield f"{artifact.file} failed its parity verdict; see {bundle.folder / PARITY_JSON}."
    if served_by == "tensorrt":
        built_by = artifact.details.builder_version
        where = f"a GPU of compute capability {artifact.details.compute_capability}"
        if artifact.details.version_compatible:
            yield (f"The plan was built by TensorRT {built_by} as version-compatible, for {where}. Start the server "
                   "with --backend-config=tensorrt,version-compatible=true")
        else:
            yield (f"The plan loads only in a Triton release with TensorRT {built_by}, on {where}. For other releases "
                   f"build it with: python -m dpt_deploy.build {bundle.folder} --version-compatible")
    if served_by == "python":
        yield ("The server's Python needs dpt-deploy with the runtime's extra, and a NumPy that its Python backend "
               "supports; the model says at start if it does not.")
    elif served_by == "onnxruntime":
        yield ("Triton does not know the limit on pixels: the client of this project keeps it, and other clients can "
               "ask for more memory than there is.")
    for one in _added(options.forms):
        yield f"Output {one.output}: {one.dtype}, {one.bytes} bytes a pixel, error at most {one.error}."


def _check_ours(folder: Path) -> None:
    """Raise `BadInput` if the folder holds a model that is not from here."""
    if not os.path.exists(folder) or (folder.is_dir() and not any(folder.iterdir())):
        return
    config = folder / CONFIG
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if config.is_file() and OURS in config.read_text(encoding="utf-8"):
            return
    raise BadInput(f"{folder}: expected no model, or one that dpt triton wrote, received other files. Choose another "
                   "--name or --out.")


@contextlib.contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of `folder` if the block succeeds."""
    with temporary_folder(folder) as temporary:
        try:
            (temporary / "new").mkdir()
            yield temporary / "new"
            if folder.exists():
                os.rename(folder, temporary / "old")
            os.rename(temporary / "new", folder)
        except OSError as error:
            raise cannot_write(folder, error) from error


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write_graph(bundle: Bundle, path: Path, version: Path, forms: tuple[Form, ...]) -> None:
    if forms:
        write_compact_graph(path, version / "model.onnx", forms)
        return
    _copy(path, version / "model.onnx")
    for part in bundle.find("data"):
        if part.file == f"{path.name}.data":  # the graph names it
            _copy(bundle.path(part), version / part.file)


def _write_bundle(bundle: Bundle, graph: Artifact, folder: Path) -> None:
    """The part of a bundle that the runtime needs to give the maps of `graph`: it, its engines and the verdict."""
    chosen = [graph, *(part for part in bundle.find("data") if part.file == f"{graph.file}.data")]
    chosen += [one for one in bundle.find("engine", graph="frame", precision=graph.precision)
               if one.details.made_from in (None, graph.sha256)]
    chosen += bundle.find("report", file=PARITY_JSON)
    folder.mkdir()
    kept = []
    for artifact in chosen:
        try:
            path = bundle.path(artifact)
        except (BadBundle, ContractError):
            if artifact is graph:
                raise
            continue
        _copy(path, folder / artifact.file)
        kept.append(artifact)
    Bundle(folder, bundle.manifest.model_copy(update={"artifacts": tuple(kept)})).save()
