"""python -m benchmarks.steady: how much less the maps of a video flicker when they are steadied, and what it costs.

Generated clips, of which depth, normals, alpha and every pixel's motion are known, through the demonstration model:
flicker along the true motion (for alpha, that of the silhouette), and along the estimated one, beside the error against
the truth, frame by frame and steadied. Draws frames in a row and one row of pixels over time.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import environment
from benchmarks.results import log, result_file, write_result
from benchmarks.steady_pictures import Strip, draw
from dpt_deploy import cli
from dpt_deploy.cli.options import Count, Json, Name, Size
from dpt_deploy.core import metrics
from dpt_deploy.core.contract import HEADS
from dpt_deploy.core.errors import BadInput
from dpt_deploy.report.writers import write_png
from dpt_deploy.runtime import Prediction, Runtime, load
from dpt_deploy.steady import Steady, Tracker, flicker
from train.data.synthetic.clip import ClipFrame, clip

PROG = "python -m benchmarks.steady"
ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = ROOT / "demo" / "model" / "best_model.pth"
MOST_FLICKER, MOST_ERROR = 0.5, 1.02
"""Goals, as ratios to frame by frame."""
NEAR = 1 / 16
"""Share of the longer side, up to which a silhouette's motion reaches into the background."""
UNITS = {"depth": "relative", "normals": "degrees", "alpha": "absolute"}


@dataclass(frozen=True)
class SteadyConfig:
    """Measure flicker and error of a bundle on generated clips, frame by frame and steadied."""

    bundle: Path | None = None
    """Bundle. Default: the demonstration model's FP32 graphs, exported once to engines/demo-steady."""
    clips: Count = 6
    """Clips: faces, full bodies and upper bodies in turn."""
    frames: Count = 75
    """Frames of each, at 25 frames per second."""
    frame_size: Size = (384, 384)
    """Size of the frames [pixels]."""
    seed: int = 777
    """Seed of the clips."""
    backend: Name | None = None
    """Backend. Default: the first one that can run here."""
    out: Path | None = None
    """Folder of the result files. Default: benchmarks/results."""
    name: str = "steady"
    """Name of the result files: NAME.json and NAME.png."""
    json: Json = False

    def __post_init__(self) -> None:
        if self.frames < 2:
            raise BadInput(f"--frames: expected at least 2, because flicker is a change, received {self.frames}.")


@dataclass
class Measured:
    """Values of the frames of a clip, by head; for flicker also by the motion; "uncovered" ones are of the pixels whose
    points were not seen in the frame before."""

    flicker: dict[str, list[float]] = field(default_factory=dict)
    error: dict[str, list[float]] = field(default_factory=dict)
    depths: list[np.ndarray] = field(default_factory=list)
    """Predicted and true depth of the foreground, (2, M) for each frame."""

    def add(self, frame: ClipFrame, maps: dict[str, np.ndarray], before: dict[str, np.ndarray] | None,
            estimated: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Add a frame. `estimated` is the optical flow to the frame before, and where it counts."""
        foreground = foreground_of(frame)
        truth = truth_of(frame)
        for head, value in maps.items():
            counted = np.ones_like(foreground) if head == "alpha" else foreground
            error = metrics.error_map(head, value[counted], truth[head][counted])
            self.error.setdefault(head, []).append(float(error.mean()))
            if before is None:
                continue
            if (hidden := counted & ~frame.seen).any():
                error = metrics.error_map(head, value[hidden], truth[head][hidden])
                self.error.setdefault(f"{head} uncovered", []).append(float(error.mean()))
            true = silhouette_motion(frame) if head == "alpha" else (frame.motion, frame.seen)
            ways = {"true": true, "estimated": estimated}
            if head == "alpha":
                ways["pixels"] = frame.motion, frame.seen
            for name, way in ways.items():
                if way is not None:
                    found = flicker(head, value, before[head], way[0], way[1] & counted)
                    self.flicker.setdefault(f"{head} {name}", []).append(found)
        if "depth" in maps:
            self.depths.append(np.stack((maps["depth"][foreground], truth["depth"][foreground])))

    def summary(self) -> dict[str, Any]:
        """Means of the clip."""
        found = {"flicker": {name: statistics.fmean(values) for name, values in self.flicker.items()},
                 "error": {name: statistics.fmean(values) for name, values in self.error.items()}}
        if self.depths:
            found["error"]["depth aligned"] = aligned_error(np.concatenate(self.depths, axis=1))
        return found


def foreground_of(frame: ClipFrame) -> np.ndarray:
    """Where depth and normals count, bool (H, W)."""
    return np.isfinite(frame.depth) & (frame.alpha > 0.5)


def silhouette_motion(frame: ClipFrame) -> tuple[np.ndarray, np.ndarray]:
    """Motion and visibility where each pixel near the foreground takes those of the nearest foreground pixel.

    Alpha belongs to the foreground: beside a silhouette that moves it changes with it, and not with the background
    there. Along the background's motion even the true alpha would flicker.
    """
    foreground = foreground_of(frame)
    if not foreground.any():
        return frame.motion, frame.seen
    distance, labels = cv2.distanceTransformWithLabels((~foreground).astype(np.uint8), cv2.DIST_L2, 5,
                                                       labelType=cv2.DIST_LABEL_PIXEL)
    place = np.zeros(labels.max() + 1, np.int64)
    inside = np.flatnonzero(foreground)
    place[labels.reshape(-1)[inside]] = inside
    nearest, near = place[labels], distance < NEAR * max(foreground.shape)
    return (np.where(near[..., None], frame.motion.reshape(-1, 2)[nearest], frame.motion),
            np.where(near, frame.seen.reshape(-1)[nearest], frame.seen))


def truth_of(frame: ClipFrame) -> dict[str, np.ndarray]:
    """The true maps; depth is 0 where there is no surface."""
    depth = np.where(np.isfinite(frame.depth), frame.depth, 0).astype(np.float32)
    return {"depth": depth, "normals": frame.normals, "alpha": frame.alpha}


def aligned_error(depths: np.ndarray) -> float:
    """AbsRel after the one scale and shift that suit all frames of a clip best; `depths` (2, M): predicted, true."""
    have, want = depths.astype(np.float64)
    design = np.stack((have, np.ones_like(have)), axis=1) / want[:, None]
    solution, *_ = np.linalg.lstsq(design, np.ones_like(have), rcond=None)
    return float(abs(design @ solution - 1).mean())


def measure(config: SteadyConfig, runtime: Runtime, number: int) -> tuple[dict[str, Any], Strip]:
    """One clip: its numbers, and what is drawn of it."""
    steady, tracker, strip = Steady(), Tracker(), Strip()
    sums = {"frames": Measured(), "steady": Measured(), "truth": Measured()}
    before: dict[str, dict[str, np.ndarray]] = {}
    last: np.ndarray | None = None
    for frame, prediction in predicted(config, runtime, number):
        steadied = steady(frame.rgb, prediction)
        maps = {"frames": prediction.maps, "steady": steadied.maps, "truth": truth_of(frame)}
        now, estimated = tracker.prepare(frame.rgb), None
        if last is not None:
            flow = tracker.flow(now, last, frame.rgb.shape[:2])
            estimated = flow.motion, flow.trust > 0.5
        for name, one in sums.items():
            one.add(frame, maps[name], before.get(name), estimated)
        strip.add(frame, maps)
        before, last = maps, now
    result = {name: one.summary() for name, one in sums.items()}
    shares = ", ".join(f"{head} {ratio(result, 'flicker', f'{head} true'):.2f}" for head in HEADS)
    log(f"clip {number}: flicker {shares} of frame by frame")
    return {"clip": number, "shots": steady.shots, **result}, strip


def predicted(config: SteadyConfig, runtime: Runtime, number: int) -> Iterator[tuple[ClipFrame, Prediction]]:
    """The frames of a clip and what the bundle makes of them."""
    for frame in clip(config.seed, number, *config.frame_size, config.frames):
        yield frame, runtime(frame.rgb)


def ratio(result: dict[str, Any], kind: str, name: str) -> float:
    """Steadied as a share of frame by frame."""
    return result["steady"][kind][name] / result["frames"][kind][name]


def mean_of(clips: list[dict[str, Any]]) -> dict[str, Any]:
    """The clips' means."""
    kinds = {"frames": ("flicker", "error"), "steady": ("flicker", "error"), "truth": ("flicker",)}
    return {name: {kind: {key: statistics.fmean(one[name][kind][key] for one in clips)
                          for key in clips[0][name][kind]} for kind in parts} for name, parts in kinds.items()}


def main(config: SteadyConfig) -> int:
    """Exit status 0; 1 if a goal is missed."""
    machine = environment.record()
    clips, strips = [], []
    with load(config.bundle or demonstration(), config.backend, compile_eagerly=True) as runtime:
        backend = runtime.backend
        for number in range(config.clips):
            numbers, strip = measure(config, runtime, number)
            clips.append(numbers)
            strips.append(strip)
    means = mean_of(clips)
    ratios = {kind: {name: ratio(means, kind, name) for name in means["frames"][kind]} for kind in ("flicker", "error")}
    met = all(value <= MOST_FLICKER for name, value in ratios["flicker"].items() if name.endswith("true")) and \
        all(value <= MOST_ERROR for value in ratios["error"].values())
    result = {"command": PROG, "backend": backend, "clips": config.clips, "frames": config.frames,
              "frame_size": list(config.frame_size), "seed": config.seed, "delay": Steady.delay, "units": UNITS,
              "goals": {"flicker": MOST_FLICKER, "error": MOST_ERROR, "met": met}, "machine": machine,
              "mean": means, "ratio": ratios, "each": clips}
    write_png(result_file(config, ".png"), draw(strips[:3]))
    write_result(config, result, show)
    return int(not met)


def demonstration() -> Path:
    """The bundle of the demonstration checkpoint; made once."""
    folder = Path("engines") / "demo-steady"
    if (folder / "parity.json").exists():
        return folder
    with cli.needing("export"):
        from dpt_deploy.export.config import ExportConfig
        from dpt_deploy.export.pipeline import export_checkpoint
    from dpt_deploy.build import EngineOptions

    log(f"exporting {folder}")
    export_checkpoint(ExportConfig(CHECKPOINT, folder, precision="fp32", engines=EngineOptions(builder="none")), log)
    return folder


def show(result: dict[str, Any]) -> None:
    """Print flicker and error, frame by frame and steadied."""
    means = result["mean"]
    print(f"{'':34}{'frames':>9}{'steady':>9}{'ratio':>7}{'truth':>9}")
    for name in means["frames"]["flicker"]:
        head, how = name.split()
        print(f"{f'flicker, {head} [{UNITS[head]}], {how}':34}{means['frames']['flicker'][name]:9.4f}"
              f"{means['steady']['flicker'][name]:9.4f}{result['ratio']['flicker'][name]:7.2f}"
              f"{means['truth']['flicker'][name]:9.4f}")
    for name in means["frames"]["error"]:
        print(f"{f'error, {name} [{UNITS[name.split()[0]]}]':34}{means['frames']['error'][name]:9.4f}"
              f"{means['steady']['error'][name]:9.4f}{result['ratio']['error'][name]:7.2f}")
    goals = result["goals"]
    print(f"goals: flicker along the true motion at most {goals['flicker']} of that frame by frame, errors at most "
          f"{goals['error']}: {'met' if goals['met'] else 'MISSED'}")


if __name__ == "__main__":
    cli.run(SteadyConfig, main, PROG)
