"""Engines for this machine, from the bundle alone: neither torch nor the checkpoint is needed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..bundle import Artifact, Bundle
from ..errors import BadInput
from .engine import Builder, Profile, build_engine, default_profile, find_builder

BuilderChoice = Literal["auto", "tensorrt", "tensorrt-rtx", "none"]


@dataclass(frozen=True)
class EngineOptions:
    """What engines to build."""

    builder: BuilderChoice = "auto"
    """auto is TensorRT where it and a GPU are present, else TensorRT-RTX; none builds nothing."""
    batch: tuple[int, int] = (1, 8)
    """Smallest and largest batch an engine takes."""
    frame_size: tuple[str, str] = ("64x64", "2160x3840")
    """Smallest and largest frame an engine takes, as HEIGHTxWIDTH [pixels]."""

    def __post_init__(self) -> None:
        low, high = self.batch
        if not 1 <= low <= high:
            raise BadInput(f"--batch: expected 1 <= smallest <= largest, received {low} {high}.")
        (min_h, min_w), (max_h, max_w) = self.frame_sizes
        if min_h > max_h or min_w > max_w:
            raise BadInput(f"--frame-size: expected smallest then largest, received {' '.join(self.frame_size)}.")

    @property
    def frame_sizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Smallest and largest (height, width)."""
        return parse_size(self.frame_size[0], "--frame-size"), parse_size(self.frame_size[1], "--frame-size")


def parse_size(text: str, option: str) -> tuple[int, int]:
    """(height, width) of "384" or "720x1280" [pixels]. Raises `BadInput` that names `option`."""
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts) or len(parts) > 2:
        raise BadInput(f"{option}: expected a size such as 384 or 720x1280 (HEIGHTxWIDTH), received {text!r}.")
    return int(parts[0]), int(parts[-1])


def build_engines(
    bundle: Bundle, options: EngineOptions, say: Callable[[str], None] = print,
    precisions: Iterable[str] | None = None,
) -> list[Artifact]:
    """Build an engine for each half-precision graph of the bundle (or for `precisions`), and describe it there.

    Reuses an engine that was made from the same graph, builder and profile. An engine of an earlier
    graph is removed. Raises `BackendError` or `BuildError`.
    """
    if options.builder == "none":
        return []
    builder = find_builder(options.builder)
    sources = [a for a in bundle.find("onnx") if (a.precision in precisions if precisions else a.precision != "fp32")]
    if not sources:  # an export with --precision fp32 has nothing else
        sources = bundle.find("onnx")
    current = {artifact.sha256 for artifact in bundle.find("onnx")}
    for stale in [engine for engine in bundle.find("engine") if engine.details.get("made_from") not in current]:
        bundle.remove(stale)
    built = []
    for source in sources:
        profile = default_profile(bundle.contract, source.graph, options.batch, options.frame_sizes)
        built.append(_build(bundle, source, builder, profile, say))
    return built


def _build(
    bundle: Bundle, source: Artifact, builder: Builder, profile: dict[str, Profile], say: Callable[[str], None]
) -> Artifact:
    file = builder.file_name(source.graph, source.precision)
    made_from = [source.sha256, builder.name, builder.version, repr(profile)]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    if reused := bundle.reusable(file, key):
        say(f"reused   {file} (same graph, builder and profile)")
        return reused
    details = build_engine(bundle.path(source), bundle.folder / file, builder, profile, source.precision == "fp32")
    details |= {"made_from": source.sha256}
    if source.graph == "frame":
        # A batch of the largest frames would need memory that few devices have.
        details["max_pixels"] = profile["frame"].max[1] * profile["frame"].max[2]
    artifact = bundle.add(
        file, "engine", graph=source.graph, precision=source.precision, key=key, details=details
    )
    say(f"built    {file} ({artifact.bytes / 1e6:.0f} MB)")
    return artifact


def run_line(bundle: Bundle, artifact: Artifact) -> str:
    """A command of the builder's own benchmark tool that loads and times an engine of the bundle."""
    tool = "trtexec" if artifact.details["builder"] == "tensorrt" else "tensorrt_rtx"
    shapes = ",".join(f"{name}:{'x'.join(map(str, p['opt']))}" for name, p in artifact.details["profile"].items())
    return f"{tool} --loadEngine={Path(bundle.folder / artifact.file)} --shapes={shapes}"


__all__ = [
    "BuilderChoice", "EngineOptions", "build_engines", "find_builder", "parse_size", "run_line",
]
