"""Engines for this machine, from the bundle alone: neither torch nor the checkpoint is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.bundle import Bundle, Recipe
from ..core.errors import BadInput
from ..core.manifest import Artifact, Certificate, ShapeRange, digest
from .engine import Builder, build_engine, choose_builder, default_profile, find_builder
from .options import BuilderChoice, EngineOptions

CERTIFICATE = 1  # version of the certificate: an engine with another one is built again


def build_engines(
    bundle: Bundle, options: EngineOptions, say: Callable[[str], None] = print, precisions: Sequence[str] = (),
) -> list[Artifact]:
    """Build an engine for each half-precision graph of the bundle (or for `precisions`), and describe it there.

    Reuses an engine that was made from the same graph, builder and profile. An engine of an earlier
    graph is removed. Each engine's certificate is in its details.

    Args:
        bundle: The bundle, which the engines are added to.
        options: Which builder, shapes and variant.
        say: Receives progress lines.
        precisions: Only graphs of these precisions.

    Raises:
        BadInput: The bundle has no graph of one of `precisions`.
        BackendError: The builder cannot do here what was asked for.
        BuildError: The builder refused the graph, or built something else than was asked for.
    """
    present = list(dict.fromkeys(graph.precision for graph in bundle.find("onnx")))
    if absent := [precision for precision in precisions if precision not in present]:
        raise BadInput(f"--precisions: {bundle.folder} has graphs in {', '.join(present)}, received "
                       f"{', '.join(absent)}. Choose among those, or export the checkpoint with --precision "
                       f"{absent[0]}.")
    if (builder := choose_builder(options)) is None:
        return []
    # An export with --precision fp32 has nothing in half precision.
    wanted = precisions or [precision for precision in present if precision != "fp32"] or present
    current = {artifact.sha256 for artifact in bundle.find("onnx")}
    for stale in [engine for engine in bundle.find("engine") if engine.details.made_from not in current]:
        bundle.remove(stale)
    built = []
    for graph in [graph for graph in bundle.find("onnx") if graph.precision in wanted]:
        profile = default_profile(bundle.contract, graph.graph, options.batch_range, options.frame_size_range)
        timings = bundle.folder / builder.timing_file if builder.name == "tensorrt" and options.timing_cache else None
        engine, reused = bundle.produce(_recipe(bundle, graph, builder, profile, options, timings))
        if reused:
            say(f"reused   {engine.file} (same graph, builder, profile and options)")
        else:
            say(f"built    {engine.file} ({engine.bytes / 1e6:.0f} MB; {_in_half(engine.details.certificate)})")
            if timings and timings.is_file():
                bundle.add(timings.name, "cache")
        built.append(engine)
    return built


def _recipe(
    bundle: Bundle, graph: Artifact, builder: Builder, profile: dict[str, ShapeRange], options: EngineOptions,
    timings: Path | None,
) -> Recipe:
    def make(path: Path) -> dict[str, Any]:
        plan = graph.details.plan
        details = build_engine(
            bundle.path(graph), path, builder, profile, graph.precision, bundle.contract.input_size,
            list(plan.fp32) if plan else None, options, timings,
        )
        details |= {"made_from": graph.sha256}
        if graph.graph == "frame":
            # A batch of the largest frames would need memory that few devices have.
            details["max_pixels"] = profile["frame"].max[1] * profile["frame"].max[2]
        return details

    shapes = {name: shape.to_json() for name, shape in profile.items()}
    key = digest([graph.sha256, builder.name, builder.version, shapes, graph.precision, options.variant, CERTIFICATE])
    file = builder.file_name(graph.graph, graph.precision, options)
    return Recipe(file, "engine", key, make, graph.graph, graph.precision)


def _in_half(certificate: Certificate) -> str:
    """One line of a certificate."""
    attention = certificate.attention
    fused = f"attention {attention.layers}/{attention.blocks} blocks" if attention.status == "passed" else \
        f"attention {attention.status}"
    return f"{certificate.flops.share or 0:.1%} of matrix FLOPs in half, {fused}"


def run_line(bundle: Bundle, artifact: Artifact) -> str:
    """A command of the builder's own benchmark tool that loads and times an engine of the bundle."""
    tool = "trtexec" if artifact.details.builder == "tensorrt" else "tensorrt_rtx"
    shapes = ",".join(f"{name}:{'x'.join(map(str, shape.opt))}" for name, shape in artifact.details.profile.items())
    return f"{tool} --loadEngine={bundle.folder / artifact.file} --shapes={shapes}"


__all__ = [
    "BuilderChoice", "EngineOptions", "build_engines", "choose_builder", "find_builder", "run_line",
]
