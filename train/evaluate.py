"""Task metrics of a checkpoint or a bundle: `python -m train.evaluate CHECKPOINT_OR_BUNDLE --data-root DIR`.

Both are scored at the network's input size and on the same pixels, so that their tables can be compared.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from dpt_deploy import cli
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import write_json

with cli.needing("train"):
    import torch
    import tyro
    from tqdm import tqdm

    from dpt_deploy.cli.options import Count, Json, Limit, Place, Verbose, Workers
    from dpt_deploy.core.contract import Contract
    from dpt_deploy.core.image_files import MAX_PIXELS
    from dpt_deploy.model import load_model, read_checkpoint

    from .data.conventions import AXES
    from .data.dataset import MapDataset, ValBatches, create_loader
    from .data.sources import BrokenSamples, open_source, split
    from .data.statistics import measure, readable, spread
    from .data.workers import worker_count
    from .loop.process import join
    from .model.forward import ForwardPass, in_metres
    from .monitoring.progress import progress_bar
    from .monitoring.scores import ConstantScores, Scores
    from .monitoring.tables import metrics_table


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a checkpoint or a bundle on data in SynthHuman's format, beside constant predictions."""

    model: Annotated[Path, tyro.conf.Positional]
    """best_model.pth, or the folder of an exported bundle."""
    data_root: Place
    """Folder of samples, a prepared cache, or tar shards, as for training."""
    split: Literal["all", "val", "train"] = "all"
    """All samples, those that training held out, or the others; by the share that the checkpoint was trained with."""
    max_samples: Limit = None
    """Largest number of samples, evenly spaced over the data set."""
    batch_size: int = 8
    """Images per batch."""
    workers: Workers = "auto"
    """Processes that read samples; 0 is in this process, auto is one per core, at most 8."""
    device: str = "auto"
    """For a checkpoint: auto, cpu, cuda, or a GPU such as cuda:0."""
    backend: str | None = None
    """For a bundle: the backend; by default the best that runs here."""
    precision: str | None = None
    """For a bundle: fp32, fp16, bf16, int8 or fp8; by default the one that the backend prefers, never eight bits."""
    normal_axes: str = AXES
    """How the files store the components of normals."""
    max_broken: int = 20
    """Broken and incomplete samples that are skipped and named before the command stops with an error."""
    max_pixels: Count = MAX_PIXELS
    """Skip samples with more pixels than this."""
    json: Json = False
    verbose: Verbose = False
    out: Path | None = None
    """Also write the result to this JSON file."""


@dataclass(frozen=True)
class Evaluated:
    """What is scored."""

    predict: Callable[[dict[str, Any]], dict[str, torch.Tensor]]
    """From a batch to maps on the CPU: depth [m], normals, alpha."""
    contract: Contract
    training: dict[str, Any]
    """The training record of the checkpoint; empty without one."""
    name: str
    """How it is run, for people."""
    reason: str = ""
    """For a bundle: why each preferred backend was not taken."""


def open_model(config: EvaluateConfig) -> Evaluated:
    """Open the checkpoint or the bundle. Raises `DptError` if it cannot be opened."""
    if os.path.isdir(config.model):  # Path.is_dir raises for a name that is too long
        return _open_bundle(config)
    checkpoint = read_checkpoint(config.model)
    device = join(config.device).device
    model = load_model(checkpoint).to(device)
    contract = checkpoint.contract or model.contract()
    forward = ForwardPass(contract, device, canonical_focal=checkpoint.training.get("canonical_focal") or 0.0)

    @torch.no_grad()
    def predict(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        batch = forward.to_device(batch)
        return {name: values.cpu() for name, values in forward.maps(forward(model, batch), batch).items()}

    return Evaluated(predict, contract, checkpoint.training, f"PyTorch FP32 on {device.type}")


def _open_bundle(config: EvaluateConfig) -> Evaluated:
    import dpt_deploy

    runtime = dpt_deploy.load(config.model, backend=config.backend, precision=config.precision)
    training = runtime.bundle.manifest.training

    def predict(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        predictions = runtime(batch["image"].permute(0, 2, 3, 1).contiguous().numpy())
        maps = {}
        for name in predictions[0].maps:
            stacked = torch.stack([torch.from_numpy(p.maps[name]) for p in predictions])
            maps[name] = stacked.permute(0, 3, 1, 2) if name == "normals" else stacked[:, None]
        if "depth" in maps:
            maps["depth"] = in_metres(maps["depth"], batch, training.get("canonical_focal") or 0.0)
        return maps

    return Evaluated(predict, runtime.bundle.contract, training, runtime.summary, runtime.reason)


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Score a model on labelled data.

    Returns:
        "model", the "reason" why a bundle's backend was taken, and how many "samples" were scored and "skipped";
        "metrics" of all samples and per kind, and "constant", the same of constant predictions:
        {"all": {metric: value}, kind: ...}.

    Raises:
        DptError: The model or the data cannot be used, or too many samples are broken.
    """
    source = open_source(config.data_root, config.normal_axes, config.max_pixels)
    to = sys.stderr if config.json else sys.stdout  # with --json, standard output holds the result and nothing else
    broken = BrokenSamples(source, config.max_broken, partial(tqdm.write, file=to))
    model = open_model(config)
    train, val = split(source.names, source.kinds, model.training.get("config", {}).get("val_fraction", 0.05))
    positions = {"all": list(range(len(source))), "val": val, "train": train}[config.split]
    positions = spread(positions, config.max_samples)
    if not positions:
        raise BadInput(f"{config.data_root}: no samples in the split {config.split!r}. Give --split all.")
    dataset = MapDataset(source, positions, model.contract)
    batches = ValBatches(len(dataset), config.batch_size, 0, 1)
    loader = create_loader(dataset, batches, min(worker_count(config.workers), len(batches)))
    statistics = measure(readable(source, spread(positions, 64)))
    scores, constants = Scores(), ConstantScores(statistics, model.contract.heads)
    for batch in progress_bar(loader, "evaluate", len(batches)):
        for entry in batch["broken"]:
            broken.add(*entry)
        if "image" in batch:
            scores.add(model.predict(batch), batch)
            constants.add(batch)
    return {"model": model.name, "reason": model.reason, "samples": len(positions) - len(broken.reasons),
            "skipped": len(broken), "metrics": scores.table(), "constant": constants.table()}


def main(config: EvaluateConfig) -> int:
    result = evaluate(config)
    if config.out:
        write_json(config.out, result)
    if config.json:
        print(json.dumps(result, indent=2))
    else:
        model = (config.verbose and result["reason"]) or result["model"]
        print(f"{config.model}: {model}; {result['samples']} samples of {config.data_root}")
        print(metrics_table(result["metrics"], result["constant"]))
    return 1 if result["skipped"] else 0


RENAMED = {"--limit": "--max-samples"}
COMMAND = cli.Command(EvaluateConfig, main, f"python -m {__package__}.evaluate", renamed=RENAMED)

if __name__ == "__main__":
    COMMAND.run()
