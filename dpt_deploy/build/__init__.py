"""Engines for this machine, from the bundle alone: neither torch nor the checkpoint is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from ..core.bundle import Artifact, Bundle
from ..core.errors import BadInput
from .engine import Builder, Profile, build_engine, choose_builder, default_profile, find_builder
from .options import BuilderChoice, EngineOptions

CERTIFICATE = 1  # version of the certificate: an engine with another one is built again

def build_engines(
    bundle: Bundle, options: EngineOptions, say: Callable[[str], None] = print,
    precisions: Sequence[str] = (),
) -> list[Artifact]:
    """Build an engine for each half-precision graph of the bundle (or for `precisions`), and describe it there.

    Reuses an engine that was made from the same graph, builder and profile. An engine of an earlier
    graph is removed. Each engine's certificate is in its details. Raises `BadInput` for a precision that
    the bundle has no graph of, `BackendError` or `BuildError`.
    """
    there = list(dict.fromkeys(graph.precision for graph in bundle.find("onnx")))
    if absent := [precision for precision in precisions or () if precision not in there]:
        raise BadInput(f"--precision: {bundle.folder} has graphs in {', '.join(there)}, received {', '.join(absent)}. "
                       f"Choose among those, or export the checkpoint with --precision {absent[0]}.")
    if (builder := choose_builder(options)) is None:
        return []
    # An export with --precision fp32 has nothing in half.
    wanted = precisions or [precision for precision in there if precision != "fp32"] or there
    sources = [graph for graph in bundle.find("onnx") if graph.precision in wanted]
    current = {artifact.sha256 for artifact in bundle.find("onnx")}
    for stale in [engine for engine in bundle.find("engine") if engine.details.get("made_from") not in current]:
        bundle.remove(stale)
    built = []
    for source in sources:
        profile = default_profile(bundle.contract, source.graph, options.batch_range, options.frame_size_range)
        built.append(_build(bundle, source, builder, profile, options, say))
    return built


def _build(
    bundle: Bundle, source: Artifact, builder: Builder, profile: dict[str, Profile], options: EngineOptions,
    say: Callable[[str], None],
) -> Artifact:
    file = builder.file_name(source.graph, source.precision, options)
    made_from = [source.sha256, builder.name, builder.version, repr(profile), source.precision, options.variant,
                 CERTIFICATE]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    if reused := bundle.reusable(file, key):
        say(f"reused   {file} (same graph, builder, profile and options)")
        return reused
    timings = bundle.folder / builder.timing_file if builder.name == "tensorrt" and options.timing_cache else None
    details = build_engine(
        bundle.path(source), bundle.folder / file, builder, profile, source.precision, bundle.contract.input_size,
        source.details.get("plan", {}).get("fp32"), options, timings,
    )
    details |= {"made_from": source.sha256}
    if source.graph == "frame":
        # A batch of the largest frames would need memory that few devices have.
        details["max_pixels"] = profile["frame"].max[1] * profile["frame"].max[2]
    if timings and timings.is_file():
        bundle.add(timings.name, "cache")
    artifact = bundle.add(
        file, "engine", graph=source.graph, precision=source.precision, key=key, details=details
    )
    say(f"built    {file} ({artifact.bytes / 1e6:.0f} MB; {_in_half(details['certificate'])})")
    return artifact


def _in_half(certificate: dict) -> str:
    """One line of a certificate."""
    attention = certificate["attention"]
    fused = f"attention {attention['layers']}/{attention['blocks']} blocks" if attention["status"] == "passed" else \
        f"attention {attention['status']}"
    return f"{certificate['flops']['share'] or 0:.1%} of matrix FLOPs in half, {fused}"


def run_line(bundle: Bundle, artifact: Artifact) -> str:
    """A command of the builder's own benchmark tool that loads and times an engine of the bundle."""
    tool = "trtexec" if artifact.details["builder"] == "tensorrt" else "tensorrt_rtx"
    shapes = ",".join(f"{name}:{'x'.join(map(str, p['opt']))}" for name, p in artifact.details["profile"].items())
    return f"{tool} --loadEngine={Path(bundle.folder / artifact.file)} --shapes={shapes}"


__all__ = [
    "BuilderChoice", "EngineOptions", "build_engines", "choose_builder", "find_builder", "run_line",
]
