"""Refit engines: replace their weights without a rebuild.

A refit changes only the values of weights, so the two graphs must be equal in everything else. That is checked from the
ONNX files first. The refit itself needs a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx

from ..backends import device
from ..backends.engines import MODULES, incompatibility, unserved_gpu
from ..core.bundle import Bundle, Recipe
from ..core.errors import BackendError, BadBundle, BuildError
from ..core.files import replacing
from ..core.manifest import EIGHT_BITS, Artifact, EngineDetails, digest
from .engine import find_builder, run_builder

MAX_DIFFERENCES_SHOWN = 3


def refit_engines(bundle: Bundle, source: Bundle, say: Callable[[str], None] = print) -> list[Artifact]:
    """Copy engines of `source` to `bundle`, with the weights of `bundle`.

    Args:
        bundle: The bundle that has the weights, and to which the engines are added.
        source: A bundle of another checkpoint of the same architecture, whose refittable engines are copied; or
            `bundle` itself, to restore the weights of its stripped engines.
        say: Receives progress lines.

    Raises:
        BadBundle: A bundle does not have the engine or the graph.
        BuildError: The graphs differ in more than the values of weights, or the refit failed.
        BackendError: No GPU is visible, or an engine does not fit this machine.
    """
    weights = "stripped" if bundle.folder.resolve() == source.folder.resolve() else "refittable"
    engines = []
    for engine in source.find("engine", weights=weights):
        if weights == "refittable" and engine.precision in EIGHT_BITS:  # the steps of activations are not weights
            say(f"skipped  {engine.file}: in eight bits, another checkpoint needs its own calibration and build")
        else:
            engines.append(engine)
    if not engines:
        raise BadBundle(f"--refit: {source.folder} has no engine with {weights} weights. Build one with: "
                        f"python -m dpt_deploy.build {source.folder} --weights {weights}")
    pairs = [(engine, source_graph(source, engine), target_graph(bundle, engine)) for engine in engines]
    for _, old, new in pairs:
        check_same_architecture(source.path(old), bundle.path(new))
    if device.compute_capability() is None:
        raise BackendError("--refit: expected the GPU that the engine was built for, but no GPU is visible.")
    return [_refit(bundle, source, engine, graph, say) for engine, _, graph in pairs]


def source_graph(source: Bundle, engine: Artifact) -> Artifact:
    """The ONNX graph that an engine was built from. Raises `BadBundle` if the bundle no longer has it."""
    graphs = source.find("onnx", sha256=engine.details.made_from)
    if not graphs:
        raise BadBundle(f"--refit: {source.folder} no longer has the graph that {engine.file} was built from. Build it "
                        f"again: python -m dpt_deploy.build {source.folder} --weights {engine.details.weights}")
    return graphs[0]


def target_graph(bundle: Bundle, engine: Artifact) -> Artifact:
    """The graph of `bundle` of the same kind and precision as `engine`. Raises `BadBundle` if there is none."""
    graphs = bundle.find("onnx", graph=engine.graph, precision=engine.precision)
    if not graphs:
        remedy = f"Export it with --precision {engine.precision}."
        if bundle.manifest.imported:
            remedy = f"An import has FP32 graphs only. Build their engines: python -m dpt_deploy.build {bundle.folder}"
        raise BadBundle(f"--refit: {bundle.folder} has no {engine.graph} graph in {engine.precision}. {remedy}")
    return graphs[0]


def check_same_architecture(old: Path, new: Path) -> None:
    """Raise `BuildError` if two ONNX files differ in more than the values of weights."""
    before, after = _description(old), _description(new)
    differences = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    if differences:
        first = "; ".join(f"{name}: {before.get(name, 'missing')} -> {after.get(name, 'missing')}"
                          for name in differences[:MAX_DIFFERENCES_SHOWN])
        raise BuildError(f"--refit: {new} is not the same architecture as {old}: {len(differences)} differences, such "
                         f"as {first}. Build its engines instead: python -m dpt_deploy.build {new.parent}")


def _description(path: Path) -> dict[str, str]:
    """Everything in a graph except the values of weights, as text by name."""
    graph = onnx.load(path, load_external_data=False).graph
    description = {f"tensor {value.name}": hashlib.sha256(value.SerializeToString()).hexdigest()[:8]
                   for value in (*graph.input, *graph.output)}
    for tensor in graph.initializer:
        text = f"{onnx.TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)}"
        if "." not in tensor.name:  # a constant; names of weights have dots
            text += " " + hashlib.sha256(tensor.SerializeToString()).hexdigest()[:8]
        description[f"weight {tensor.name}"] = text
    for index, node in enumerate(graph.node):
        digest = hashlib.sha256(node.SerializeToString(deterministic=True)).hexdigest()[:8]
        description[f"node {index}"] = f"{node.op_type} {node.name} {digest}"
    return description


def _refit(bundle: Bundle, source: Bundle, engine: Artifact, graph: Artifact, say: Callable[[str], None]) -> Artifact:
    details: EngineDetails = engine.details
    builder = find_builder(details.builder)
    if problem := unserved_gpu(engine, device.compute_capability(), source.folder):
        raise BackendError(f"--refit: {engine.file}: {problem.reason}. Instead, {problem.instead}.")
    # A stripped engine never fits: check the engine that it becomes.
    with_weights = engine.model_copy(update={"details": details.model_copy(update={"weights": "fixed"})})
    if why := incompatibility(source, with_weights, builder.version, device.compute_capability()):
        raise BackendError(f"--refit: {engine.file} {why}. Build it again: python -m dpt_deploy.build {source.folder} "
                           f"--weights {details.weights}")
    stripped = details.weights == "stripped"

    def make(path: Path) -> EngineDetails:
        with replacing(path) as temporary:
            request = {"action": "refit", "module": MODULES[builder.name], "engine": str(source.path(engine)),
                       "onnx": str(bundle.path(graph)), "plan": str(temporary), "keep_refittable": not stripped}
            result = run_builder(request, builder, f"could not refit {engine.file}")
        old = with_weights.details if stripped else details
        certificate = (old.certificate.to_json() if old.certificate else {}) | result
        return EngineDetails.model_validate(old.to_json() | {
            "certificate": certificate, "made_from": graph.sha256, "refitted_from": engine.sha256})

    file = engine.file.replace("-stripped", "") if stripped else engine.file
    artifact, reused = bundle.produce(Recipe(
        file, "engine", digest([graph.sha256, engine.sha256, "refit"]), make, engine.graph, engine.precision))
    if reused:
        say(f"reused   {file} (same engine and weights)")
    else:
        say(f"refitted {file} ({artifact.bytes / 1e6:.0f} MB)")
    return artifact
