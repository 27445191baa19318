"""Task metrics of a checkpoint or an exported bundle: `python -m train.evaluate CHECKPOINT_OR_BUNDLE --data-root DIR`.

Both are judged at the network's input size, on the same pixels, so that their tables stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from dpt_deploy import cli
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import write_json

with cli.needing("train"):
    import torch
    import tyro
    from tqdm import tqdm

    from dpt_deploy.core.contract import Contract
    from dpt_deploy.model import load_model, read_checkpoint
    from train.broken import Broken
    from train.dataset import MapDataset, ValBatches, create_loader
    from train.distributed import join
    from train.geometry import AXES
    from train.logs import metrics_table
    from train.network import maps_of, to_device
    from train.scores import Scores
    from train.sources import open_source, split
    from train.statistics import ConstantScores, measure, readable, spread

Predictor = Callable[[dict[str, Any]], dict[str, torch.Tensor]]


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a checkpoint or a bundle on SynthHuman-format data, beside constant predictions."""

    model: Annotated[Path, tyro.conf.Positional]
    """best_model.pth, or the folder of an exported bundle."""
    data_root: Path
    """Folder of samples, or a prepared cache."""
    split: Literal["all", "val", "train"] = "all"
    """Every sample, or those that training held out (or not), by the checkpoint's own share."""
    limit: int = 0
    """Only so many samples, spread over the set; 0 is all."""
    batch_size: int = 8
    """Images at once."""
    workers: int = 2
    """Processes that read samples; 0 reads in this one."""
    device: str = "auto"
    """For a checkpoint: auto, cpu, cuda or cuda:0."""
    backend: str | None = None
    """For a bundle: a backend of dpt_deploy.load; by default the best that runs here."""
    precision: str | None = None
    """For a bundle: fp32, fp16 or bf16."""
    normal_axes: str = AXES
    """What the files' normal components are."""
    max_broken: int = 20
    """Broken and incomplete samples that are named and skipped before the command stops."""
    json: Path | None = None
    """Also write the table here."""


def open_model(config: EvaluateConfig) -> tuple[Predictor, Contract, dict[str, Any], str]:
    """A function from batch to maps (depth [m], normals, alpha), its contract, training record, and a name for it."""
    if config.model.is_dir():
        return _open_bundle(config)
    checkpoint = read_checkpoint(config.model)
    device = join(config.device).device
    model = load_model(checkpoint).to(device)
    contract = checkpoint.contract or model.contract()
    canonical = checkpoint.training.get("canonical_focal")

    @torch.no_grad()
    def predict(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        outputs = model(to_device(batch, device, contract)["pixels"])
        return maps_of({name: value.cpu() for name, value in outputs.items()}, _factor(batch, canonical))

    return predict, contract, checkpoint.training, f"PyTorch FP32 on {device.type}"


def _open_bundle(config: EvaluateConfig) -> tuple[Predictor, Contract, dict[str, Any], str]:
    import dpt_deploy

    runtime = dpt_deploy.load(config.model, backend=config.backend, precision=config.precision)
    training = runtime.bundle.header.get("training") or {}

    def predict(batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        predictions = runtime(batch["image"].permute(0, 2, 3, 1).contiguous().numpy())
        maps = {}
        for name in predictions[0].maps:
            stacked = torch.stack([torch.from_numpy(p.maps[name]) for p in predictions])
            maps[name] = stacked.permute(0, 3, 1, 2) if name == "normals" else stacked[:, None]
        factor = _factor(batch, training.get("canonical_focal"))
        if factor is not None and "depth" in maps:
            maps["depth"] = maps["depth"] * factor.view(-1, 1, 1, 1)
        return maps

    return predict, runtime.bundle.contract, training, runtime.reason


def _factor(batch: dict[str, Any], canonical: float | None) -> torch.Tensor | None:
    return batch["focal"] / canonical if canonical else None


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """The tables: {"model", "samples", "metrics": {"all": {metric: value}, kind: ...}, "constant": ...}."""
    source = open_source(config.data_root, config.normal_axes)
    broken = Broken(source, config.max_broken, tqdm.write)
    predict, contract, training, name = open_model(config)
    train, val = split(source.names, source.kinds, training.get("config", {}).get("val_fraction", 0.05))
    positions = {"all": list(range(len(source.names))), "val": val, "train": train}[config.split]
    if config.limit:
        positions = spread(positions, config.limit)
    if not positions:
        raise BadInput(f"{config.data_root}: no samples in the split {config.split!r}. Give --split all.")
    dataset = MapDataset(source, positions, contract)
    batches = ValBatches(len(dataset), config.batch_size, 0, 1)
    statistics = measure(readable(source, spread(positions, 64)))
    scores, constants = Scores(), ConstantScores(statistics, contract.heads)
    for batch in tqdm(create_loader(dataset, batches, config.workers), "evaluate", len(batches)):
        for entry in batch["broken"]:
            broken.add(*entry)
        if "image" in batch:
            scores.add(predict(batch), batch)
            constants.add(batch)
    return {"model": name, "samples": len(positions) - len(broken.reasons), "metrics": scores.table(),
            "constant": constants.table()}


def main(config: EvaluateConfig) -> None:
    result = evaluate(config)
    print(f"{config.model}: {result['model']}; {result['samples']} samples of {config.data_root}")
    print(metrics_table(result["metrics"], result["constant"]))
    if config.json:
        write_json(config.json, result)


COMMAND = cli.Command(EvaluateConfig, main, "python -m train.evaluate")

if __name__ == "__main__":
    COMMAND.run()
