"""New weights for engines that are built already: those of another bundle of the same architecture, or a bundle's own.

A refit replaces weights and nothing else, so the graphs must agree in everything but values: that is
checked from the ONNX files before anything is attempted. The refit itself needs a GPU.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import onnx

from ..backends import device
from ..backends.engines import MODULES, misfit
from ..core.bundle import Bundle, Recipe
from ..core.errors import BackendError, BadBundle, BuildError
from ..core.files import replacing
from ..core.manifest import Artifact, EngineDetails, digest
from .engine import Builder, find_builder, run_builder

SHOWN = 3


def refit_engines(bundle: Bundle, source: Bundle, say: Callable[[str], None] = print) -> list[Artifact]:
    """Give the refittable and the stripped engines of `source` the weights of `bundle`'s graphs, into `bundle`.

    `source` is a bundle of another checkpoint of the same architecture, or `bundle` itself, whose stripped
    engines then get their own weights back. Raises `BadBundle` when `source` has no such engine for this
    machine, `BuildError` when the graphs differ in more than values, `BackendError` without a GPU.
    """
    own = bundle.folder.resolve() == source.folder.resolve()
    chosen = [
        engine for engine in source.find("engine")
        if engine.details.weights in (("stripped",) if own else ("refittable",))
    ]
    if not chosen:
        weights = "stripped" if own else "refittable"
        raise BadBundle(f"--refit: {source.folder} has no engine with {weights} weights. Build one with: "
                        f"python -m dpt_deploy.build {source.folder} --weights {weights}")
    pairs = [(engine, graph_of(source, engine), counterpart(bundle, engine)) for engine in chosen]
    for _, old, new in pairs:
        check_same_architecture(source.path(old), bundle.path(new))
    if device.compute_capability() is None:
        raise BackendError("--refit: an engine is refitted on the GPU that it was built for, and none is visible here.")
    return [_refit(bundle, source, engine, graph, say) for engine, _, graph in pairs]


def graph_of(source: Bundle, engine: Artifact) -> Artifact:
    """The ONNX graph that an engine was made from. Raises `BadBundle` when the bundle no longer has it."""
    graphs = source.find("onnx", sha256=engine.details.made_from)
    if not graphs:
        raise BadBundle(f"--refit: {source.folder} no longer has the graph that {engine.file} was built from. Build it "
                        f"again: python -m dpt_deploy.build {source.folder} --weights {engine.details.weights}")
    return graphs[0]


def counterpart(bundle: Bundle, engine: Artifact) -> Artifact:
    """The graph of `bundle` that plays the part of `engine`'s own. Raises `BadBundle` when there is none."""
    graphs = bundle.find("onnx", graph=engine.graph, precision=engine.precision)
    if not graphs:
        raise BadBundle(f"--refit: {bundle.folder} has no {engine.graph} graph in {engine.precision}. Export it with "
                        f"--precision {engine.precision}.")
    return graphs[0]


def check_same_architecture(old: Path, new: Path) -> None:
    """Raise `BuildError`, naming the first differences, unless two graphs differ in the values of weights alone."""
    before, after = _description(old), _description(new)
    differences = [name for name in dict.fromkeys([*before, *after]) if before.get(name) != after.get(name)]
    if differences:
        first = "; ".join(f"{name}: {before.get(name, 'absent')} and {after.get(name, 'absent')}"
                          for name in differences[:SHOWN])
        raise BuildError(f"--refit: {new} is not the same architecture as {old}: {len(differences)} differences, such "
                         f"as {first}. Build its engines instead: python -m dpt_deploy.build {new.parent}")


def _description(path: Path) -> dict[str, str]:
    """All of a graph but the values of its weights; constants without a weight's name count with their values."""
    graph = onnx.load(path, load_external_data=False).graph
    found = {f"tensor {value.name}": hashlib.sha256(value.SerializeToString()).hexdigest()[:8]
             for value in (*graph.input, *graph.output)}
    for tensor in graph.initializer:
        text = f"{onnx.TensorProto.DataType.Name(tensor.data_type)} {list(tensor.dims)}"
        if "." not in tensor.name:
            text += " " + hashlib.sha256(tensor.SerializeToString()).hexdigest()[:8]
        found[f"weight {tensor.name}"] = text
    for index, node in enumerate(graph.node):
        digest = hashlib.sha256(node.SerializeToString(deterministic=True)).hexdigest()[:8]
        found[f"node {index}"] = f"{node.op_type} {node.name} {digest}"
    return found


def _refit(
    bundle: Bundle, source: Bundle, engine: Artifact, graph: Artifact, say: Callable[[str], None]
) -> Artifact:
    details: EngineDetails = engine.details
    builder = find_builder(details.builder)
    # Without its weights it runs nowhere; what matters is whether it runs once it has them.
    filled = engine.model_copy(update={"details": details.model_copy(update={"weights": "fixed"})})
    if why := misfit(source, filled, builder.version, device.compute_capability()):
        raise BackendError(f"--refit: {engine.file} {why}. Build it again: python -m dpt_deploy.build {source.folder} "
                           f"--weights {details.weights}")
    stripped = details.weights == "stripped"

    def make(path: Path) -> EngineDetails:
        answer = _fill(source.path(engine), bundle.path(graph), path, builder, not stripped)
        kept = filled.details if stripped else details
        certificate = (kept.certificate.to_json() if kept.certificate else {}) | answer
        return EngineDetails.model_validate(kept.to_json() | {
            "certificate": certificate, "made_from": graph.sha256, "refitted_from": engine.sha256})

    file = engine.file.replace("-stripped", "") if stripped else engine.file
    artifact, reused = bundle.produce(Recipe(
        file, "engine", digest([graph.sha256, engine.sha256, "refit"]), make, engine.graph, engine.precision))
    if reused:
        say(f"reused   {file} (same engine and weights)")
    else:
        say(f"refitted {file} ({artifact.bytes / 1e6:.0f} MB)")
    return artifact


def _fill(engine: Path, graph: Path, plan: Path, builder: Builder, keep_refittable: bool) -> dict[str, int]:
    with replacing(plan) as temporary:
        order = {"do": "refit", "module": MODULES[builder.name], "engine": str(engine), "onnx": str(graph),
                 "plan": str(temporary), "keep_refittable": keep_refittable}
        return run_builder(order, builder, f"could not refit {engine.name}")
