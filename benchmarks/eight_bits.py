"""python benchmarks/eight_bits.py BUNDLE --calibrate DIR: what eight bits cost and gain, plan by plan.

For each plan and backend: distances to FP32 on the built-in scenes and on two halves of the data, A and B; with
labelled data, the change of the task's metrics on each half; and the speed beside FP32 in the same backend. Budgets are
chosen on the scenes and A, and confirmed on B.
"""

# ruff: noqa: E402 - run by its path, this file finds the repository through the next line but one
from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import onnx
import tyro

from benchmarks import environment
from benchmarks.results import log, result_file, write_result
from benchmarks.timing import interleave, speedup
from dpt_deploy import backends, cli
from dpt_deploy.backends import Session, SessionOptions
from dpt_deploy.cli.commands import training_module
from dpt_deploy.cli.options import Count, Json, Place
from dpt_deploy.core import metrics
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.manifest import Artifact, PrecisionPlan
from dpt_deploy.parity import images as built_in
from dpt_deploy.parity import load_budget
from dpt_deploy.parity.compare import as_maps
from dpt_deploy.parity.task_loss import Labelled, Part, judge_task, measure_task
from dpt_deploy.runtime.image import postprocess, preprocess

PROG = "python benchmarks/eight_bits.py"
Maps = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class EightBitsConfig:
    """Measure what eight bits cost and gain in each backend of this machine, for several plans."""

    bundle: Annotated[Path, tyro.conf.Positional]
    """A bundle; its FP32 model graph is quantized."""
    calibrate: Path
    """Folder of images to calibrate on."""
    data_root: Place | None = None
    """Labelled data, of which halves A and B are made. Without it, A and B are images of --calibrate, and no task is
    judged."""
    calibration_images: Count = 64
    """Images to calibrate on."""
    images: Count = 160
    """Images of A and B together."""
    rounds: Count = 10
    """Timed calls of each graph, interleaved."""
    out: Path | None = None
    """Folder of the result. Default: benchmarks/results."""
    name: str = "eight_bits"
    """Name of the result's files."""
    json: Json = False


def plans(ends: tuple[str, ...]) -> dict[str, PrecisionPlan]:
    """The plans to measure, by name: the ends of the network stay wide in each."""
    def int8(*wide: str, **options: Any) -> PrecisionPlan:
        return PrecisionPlan("int8", (), wide=(*ends, *wide), **options)

    return {
        "everything": int8(), "everything, 7-bit weights": int8(weight_bits=7), "backbone and decoder": int8("heads"),
        "backbone": int8("heads", "decoder"), "decoder and heads": int8("backbone"),
        "weights only": PrecisionPlan("int8", (), weights_only=True),
    }


def measure(config: EightBitsConfig) -> dict[str, Any]:
    """The result: one row per plan and backend, with what the budgets are."""
    with cli.needing("export"):
        from dpt_deploy.export.calibration_images import calibration_images
        from dpt_deploy.export.quantization.bench import runners
        from dpt_deploy.export.quantization.calibration import clips, measure_ranges
        from dpt_deploy.export.quantization.insertion import insert
        from dpt_deploy.export.quantization.layers import eight_bit, ends, layers_of

    bundle = Bundle.open(config.bundle)
    contract = bundle.contract
    (fp32,) = bundle.find("onnx", graph="model", precision="fp32")
    graph = onnx.load(bundle.path(fp32))
    layers, total = layers_of(graph, contract.input_size)
    frames, _ = calibration_images(config.calibrate, config.calibration_images)
    log(f"calibrating on {len(frames)} images")
    ranges = clips(measure_ranges(bundle.path(fp32), layers, (preprocess(f[None], contract)[0] for f in frames)), 127)
    labelled = _labelled(config, bundle)
    pictures = [labelled.frame(i) for i in range(len(labelled))] if labelled else frames[: config.images]
    sets = {"scenes": [frame for _, adversarial, frame in built_in.built_in() if not adversarial],
            "A": pictures[::2], "B": pictures[1::2]}
    inputs = {name: [preprocess(frame[None], contract) for frame in chosen] for name, chosen in sets.items()}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        trial = _Trial(Path(folder), bundle)
        for backend in runners("int8"):
            with backends.get(backend).open(bundle, fp32, SessionOptions(compile_eagerly=True)) as full:
                wanted = {name: list(_maps(full, chosen)) for name, chosen in inputs.items()}
                before = _task(full, labelled, bundle)
                for name, plan in plans(ends(layers)).items():
                    log(f"{backend}: {name}")
                    chosen = [layer for layer in layers if layer in eight_bit(layers, plan.wide)]
                    small = insert(graph, {layer.node for layer in chosen}, ranges, plan)
                    with trial.session(backend, small, plan) as session:
                        share = 0.0 if plan.weights_only else sum(layer.flops for layer in chosen) / total
                        rows.append({
                            "plan": name, "backend": backend, "wide": list(plan.wide), "share": share,
                            "distances": {key: _distances(wanted[key], _maps(session, chosen))
                                          for key, chosen in inputs.items()},
                            "task": {key: _change(before[key], session, part, bundle)
                                     for key, part in _halves(labelled).items()},
                            "speed": _speed(full, session, inputs["scenes"][0], config.rounds),
                            "bytes": trial.bytes,
                        })
    budget, _ = load_budget(None)
    return {
        "command": cli.command_line(PROG), "machine": environment.record(),
        "model": bundle.manifest.model.backbone, "fp32_bytes": fp32.bytes, "calibration_images": len(frames),
        "images": {name: len(chosen) for name, chosen in sets.items()}, "data": labelled.name if labelled else None,
        "budgets": {key: budget[key] for key in ("int8", "task")},
        "rows": rows,
    }


class _Trial:
    """A bundle of one graph at a time."""

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        self.bundle = Bundle.create(folder / "trial", bundle.manifest.model_copy(update={"artifacts": ()}))
        self.bundle.folder.mkdir()
        self.bytes = 0

    def session(self, backend: str, graph: onnx.ModelProto, plan: PrecisionPlan) -> Session:
        onnx.save(graph, self.bundle.folder / "model.int8.onnx")
        artifact: Artifact = self.bundle.add("model.int8.onnx", "onnx", graph="model", precision="int8",
                                             details={"plan": plan.to_json()})
        self.bytes = artifact.bytes
        return backends.get(backend).open(self.bundle, artifact, SessionOptions(compile_eagerly=True))


def _labelled(config: EightBitsConfig, bundle: Bundle) -> Labelled | None:
    if config.data_root is None:
        return None
    data = training_module("train.labelled").open_labelled(
        config.data_root, bundle.contract, bundle.manifest.training, count=config.images, say=log)
    if len(data) < 32:
        raise BadInput(f"--data-root {config.data_root}: expected at least 32 labelled samples, received {len(data)}.")
    return data


def _halves(labelled: Labelled | None) -> dict[str, Labelled]:
    if labelled is None:
        return {}
    return {"A": Part(labelled, range(0, len(labelled), 2)), "B": Part(labelled, range(1, len(labelled), 2))}


def _maps(session: Session, images: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    for image in images:
        yield as_maps("model", {name: value[0] for name, value in session.run({"image": image}).items()})


def _distances(wanted: Maps, have: Iterator[dict[str, np.ndarray]]) -> dict[str, dict[str, dict[str, float]]]:
    """By head and metric: the mean over the images, and the worst image."""
    found: dict[tuple[str, str], list[float]] = {}
    for want, maps in zip(wanted, have, strict=True):
        for head, values, _ in metrics.parity(want, maps):
            for metric, value in values.items():
                found.setdefault((head, metric), []).append(value)
    result: dict[str, dict[str, dict[str, float]]] = {}
    for (head, metric), values in found.items():
        worst = min(values) if metric in metrics.AT_LEAST else max(values)
        result.setdefault(head, {})[metric] = {"mean": float(np.mean(values)), "worst": worst}
    return result


def _runner(session: Session, bundle: Bundle) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def run(frames: np.ndarray) -> dict[str, np.ndarray]:
        contract = bundle.contract
        return postprocess(session.run({"image": preprocess(frames, contract)}), contract, frames.shape[1:3])

    return run


def _task(session: Session, labelled: Labelled | None, bundle: Bundle) -> dict[str, Any]:
    return {key: measure_task(_runner(session, bundle), part, bundle.contract.heads)
            for key, part in _halves(labelled).items()}


def _change(before: Any, session: Session, part: Labelled, bundle: Bundle) -> list[dict[str, Any]]:
    budget, _ = load_budget(None)
    verdict = judge_task(before, _runner(session, bundle), part, budget["task"], bundle.contract.heads)
    return [dataclasses.asdict(change) for change in verdict.changes]


def _speed(full: Session, session: Session, image: np.ndarray, rounds: int) -> dict[str, Any]:
    """How many times faster than FP32 in the same backend, on the model graph."""
    calls = {"fp32": partial(_call, full, image), "int8": partial(_call, session, image)}
    timings = interleave(calls, rounds, warm_up=2)
    return speedup(timings["int8"], timings["fp32"]) | {"rounds": rounds}


def _call(session: Session, image: np.ndarray) -> None:
    session.run({"image": image})


_COLUMNS = [("depth", "abs_rel", "AbsRel", ".4f"), ("normals", "mean", "degrees", ".2f"),
            ("alpha", "iou", "IoU", ".3f")]


def show(result: dict[str, Any]) -> None:
    """Print a table."""
    columns = [one for one in _COLUMNS if one[0] in result["rows"][0]["distances"]["A"]]
    titles = "".join(f"{f'{title} A':>11}{'B':>9}" for *_, title, _ in columns)
    print(f"{'plan':28}{'backend':17}{'eight bits':>11}{'speed':>7}{titles}   (worst image)")
    for row in result["rows"]:
        values = "".join(f"{row['distances'][part][head][metric]['worst']:>{width}{form}}"
                         for head, metric, _, form in columns for part, width in (("A", 11), ("B", 9)))
        print(f"{row['plan']:28}{row['backend']:17}{row['share']:>11.1%}{row['speed']['median']:>7.2f}{values}")


def plot(result: dict[str, Any], path: Path) -> None:
    """Speed against loss, one point per plan and backend; the loss is the mean distance of a map to FP32 on B."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
        axes = figure.add_subplot()
        markers = {"openvino": ("o", "#4269d0"), "onnxruntime-cpu": ("s", "#e8590c")}
        head, metric, title, _ = next(one for one in _COLUMNS if one[0] in result["rows"][0]["distances"]["B"])
        names = list(dict.fromkeys(row["plan"] for row in result["rows"]))
        for row in result["rows"]:
            marker, colour = markers.get(row["backend"], ("^", "#2f9e44"))
            x, y = row["speed"]["median"], row["distances"]["B"][head][metric]["mean"]
            axes.plot([x], [y], marker, color=colour)
            axes.annotate(str(names.index(row["plan"]) + 1), (x, y), (6, 4), textcoords="offset points", color=colour)
        for name, (marker, colour) in markers.items():
            axes.plot([], [], marker, color=colour, label=name)
        for i, name in enumerate(names, 1):
            axes.plot([], [], " ", label=f"{i} {name}")
        axes.set(xlabel="speed beside FP32 in the same backend", ylabel=f"mean {title} of {head} to FP32",
                 yscale="linear" if metric == "iou" else "log",
                 title=f"Eight bits, {result['model']}: speed against loss")
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), handlelength=1)
        figure.savefig(path)


def main(config: EightBitsConfig) -> int:
    result = measure(config)
    write_result(config, result, show)
    plot(result, result_file(config, ".png"))
    return 0


if __name__ == "__main__":
    cli.run(EightBitsConfig, main, PROG)
