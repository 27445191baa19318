"""Build engines for this machine from a bundle, without torch and without the checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..backends import device
from ..backends.served_gpus import unserved
from ..core.bundle import Bundle, Recipe
from ..core.errors import BadInput, DptError
from ..core.files import replacing, temporary_folder
from ..core.manifest import EIGHT_BITS, Artifact, Certificate, Record, digest
from .engine import Builder, build_engine, choose_builder, default_profile, find_builder
from .options import BuilderChoice, EngineOptions

AT_ONCE_BYTES = 1_000_000_000  # a build takes about six times the memory of its graph
BUILD_VERSION = 2  # part of the key of an engine: raising it rebuilds all engines


def build_engines(
    bundle: Bundle, options: EngineOptions, say: Callable[[str], None] = print, precisions: Sequence[str] = (),
) -> list[Artifact]:
    """Build an engine for each half-precision and eight-bit graph of the bundle, or for each graph of `precisions`.

    An engine of the same graph, builder, profile and options is reused. Engines of outdated graphs are removed, and so
    are engines and timing caches that the manifest lists and the folder lacks, as in a copy made without them.

    Args:
        bundle: The bundle that has the graphs; the engines are added to it, with their certificates in `details`.
        options: Builder, shapes and kind of the engines.
        say: Receives progress lines.
        precisions: Precisions of the graphs, such as fp16.

    Returns:
        The engines; empty if `options.builder` is "none".

    Raises:
        BadInput: The bundle has no graph in one of `precisions`.
        BackendError: The builder is not available, or does not support `options` on this machine.
        BuildError: The builder failed, or the network does not compute in the requested precision.
    """
    present = list(dict.fromkeys(graph.precision for graph in bundle.find("onnx")))
    if absent := [precision for precision in precisions if precision not in present]:
        other = "" if bundle.manifest.imported else f", or export with {export_option(absent[0])}"
        raise BadInput(f"--precisions: {bundle.folder} has graphs in {', '.join(present)}, received "
                       f"{', '.join(absent)}. Use one of those{other}.")
    builder = choose_builder(options)
    current = {artifact.sha256 for artifact in bundle.find("onnx")}
    for artifact in [*bundle.find("engine"), *bundle.find("cache")]:
        outdated = artifact.kind == "engine" and artifact.details.made_from not in current
        if outdated or not os.path.exists(bundle.folder / artifact.file):
            bundle.remove(artifact)
    if builder is None:
        return []
    if problem := unserved(builder.name, builder.version, device.compute_capability(), options.turing, bundle.folder):
        say(f"note     the engines will not run on this machine: {problem.reason}; here, {problem.instead}")
    # Eight bits are never chosen unasked, so a bundle without half precision needs engines in FP32 beside them.
    half = [precision for precision in present if precision in ("fp16", "bf16")]
    wanted = precisions or [*(half or ["fp32"]), *EIGHT_BITS]
    graphs = []
    for graph in [graph for graph in bundle.find("onnx") if graph.precision in wanted]:
        if reason := _not_buildable(graph, builder, options):
            say(f"skipped  {graph.file}: {reason}")
        else:
            graphs.append(graph)
    timings = bundle.folder / builder.timing_file if builder.name == "tensorrt" and options.timing_cache else None
    recipes = [_recipe(bundle, graph, builder, options, timings) for graph in graphs]
    with _two_at_a_time(bundle, graphs, recipes, builder) as recipes:
        return [_produce(bundle, recipe, timings, say) for recipe in recipes]


def _produce(bundle: Bundle, recipe: Recipe, timings: Path | None, say: Callable[[str], None]) -> Artifact:
    engine, reused = bundle.produce(recipe)
    if reused:
        say(f"reused   {engine.file} (same graph, builder, profile and options)")
        return engine
    say(f"built    {engine.file} ({engine.bytes / 1e6:.0f} MB; {_summary(engine.details.certificate)})")
    if timings and timings.is_file():
        bundle.add(timings.name, "cache")
    return engine


@contextlib.contextmanager
def _two_at_a_time(
    bundle: Bundle, graphs: list[Artifact], recipes: list[Recipe], builder: Builder
) -> Iterator[list[Recipe]]:
    """Build the engines of `graphs` two at a time if they are small. Yields recipes that wait for them.

    TensorRT is left alone: it times its kernels on the GPU meanwhile. A block that fails starts no further builds.
    """
    files = {graph.file for graph in graphs}
    size = sum(artifact.bytes for artifact in bundle.artifacts if artifact.file.removesuffix(".data") in files)
    at_once = builder.name != "tensorrt" and size <= AT_ONCE_BYTES
    missing = [recipe for recipe in recipes if not bundle.has(recipe)] if at_once else []
    if len(missing) < 2:
        yield recipes
        return
    with temporary_folder(bundle.folder / missing[0].file) as folder:
        pool = ThreadPoolExecutor(max_workers=2)

        def started(recipe: Recipe) -> Recipe:
            temporary = folder / recipe.file
            build = pool.submit(recipe.make, temporary)

            def wait(path: Path) -> Record | dict[str, Any] | None:
                try:
                    details = build.result()
                except DptError as error:
                    raise type(error)(str(error).replace(str(temporary), str(path))) from error
                with replacing(path) as whole:
                    os.replace(temporary, whole)
                return details
            return dataclasses.replace(recipe, make=wait)

        try:
            yield [started(recipe) if recipe in missing else recipe for recipe in recipes]
        finally:
            pool.shutdown(cancel_futures=True)


def export_option(precision: str) -> str:
    """The options of the export that make graphs in a precision."""
    return f"--precision {precision}" + (" --calibrate DIR" if precision in EIGHT_BITS else "")


def _not_buildable(graph: Artifact, builder: Builder, options: EngineOptions) -> str | None:
    """Why the builder cannot make an engine of a graph, or None if it can."""
    plan = graph.details.plan
    if options.turing and graph.precision in EIGHT_BITS:
        return "TensorRT-RTX has no eight-bit kernels on Turing; for engines there, export with --precision fp16"
    if options.turing and graph.graph == "frame" and (not plan or "resize" in plan.fp32):
        return "TensorRT-RTX has no FP32 matrix products on Turing, and its resize is FP32; TensorRT builds it there"
    if builder.name == "tensorrt":  # it builds for the visible GPU
        problem = unserved(builder.name, builder.version, device.compute_capability(), precision=graph.precision)
        return f"{problem.reason}; {problem.instead}" if problem else None
    return None


def _recipe(
    bundle: Bundle, graph: Artifact, builder: Builder, options: EngineOptions, timings: Path | None
) -> Recipe:
    profile = default_profile(bundle.contract, graph.graph, options.batch_range, options.frame_size_range)

    def make(path: Path) -> dict[str, Any]:
        plan = graph.details.plan
        details = build_engine(
            bundle.path(graph), path, builder, profile, graph.precision, bundle.contract.input_size,
            plan, options, timings,
        )
        details["made_from"] = graph.sha256
        if graph.graph == "frame":
            # A batch of the largest frames needs more memory than most devices have.
            details["max_pixels"] = profile["frame"].max[1] * profile["frame"].max[2]
        return details

    shapes = {name: shape.to_json() for name, shape in profile.items()}
    key = digest([graph.sha256, builder.name, builder.version, shapes, graph.precision, options.variant,
                  BUILD_VERSION])
    file = builder.file_name(graph.graph, graph.precision, options)
    return Recipe(file, "engine", key, make, graph.graph, graph.precision)


def _summary(certificate: Certificate) -> str:
    attention = certificate.attention
    fused = f"attention {attention.status}"
    if attention.status == "passed":
        fused = f"attention {attention.layers}/{attention.blocks} blocks with {attention.sums.upper()} sums"
    half = f"{certificate.flops.share or 0:.1%} of matrix FLOPs in half precision, {fused}"
    eight_bits = certificate.eight_bits
    if not eight_bits.type:
        return half
    name = eight_bits.type.upper()
    if eight_bits.weights_only and not eight_bits.layers:
        return f"weights of {eight_bits.weights_only} layers in {name}, {half}"
    return f"{eight_bits.share or 0:.1%} of matrix FLOPs in {name}, {half}"


def benchmark_command(bundle: Bundle, artifact: Artifact) -> str:
    """The shell line that times an engine of the bundle with the builder's own tool."""
    tool = "trtexec" if artifact.details.builder == "tensorrt" else "tensorrt_rtx"
    shapes = ",".join(f"{name}:{'x'.join(map(str, shape.opt))}" for name, shape in artifact.details.profile.items())
    return f"{tool} --loadEngine={bundle.folder / artifact.file} --shapes={shapes}"


__all__ = ["BuilderChoice", "EngineOptions", "benchmark_command", "build_engines", "choose_builder", "find_builder"]
