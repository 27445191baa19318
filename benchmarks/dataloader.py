"""Where the time goes when samples are read: the originals against a prepared cache.

    python -m benchmarks.dataloader [--data-root DIR] [--input-size 384] [--samples 60]

Without --data-root it generates samples of 512x512. Prints milliseconds per sample in one process,
and samples per second with worker processes; writes them with --json.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import machine
from dpt_deploy import cli
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.files import write_json

with cli.needing("train"):
    import cv2
    import torch

    from train import exr
    from train.augment import Augment
    from train.dataset import MapDataset, ValBatches, create_loader
    from train.prepare import PrepareConfig, prepare
    from train.sample import to_network
    from train.sources import FolderSource, open_source
    from train.synthetic import SyntheticConfig, write_dataset


@dataclass(frozen=True)
class DataloaderConfig:
    """Measure reading of SynthHuman's files and of a prepared cache."""

    data_root: Path | None = None
    """Folder of samples; generated when left out."""
    input_size: int = 384
    """Height and width of the network's input [pixels]."""
    samples: int = 60
    """How many samples to read."""
    workers: int = 2
    """Worker processes of the second table."""
    json: Path | None = None
    """Also write the numbers here."""


def milliseconds(function: Callable[[int], object], count: int) -> float:
    """Median time of `function(i)` over i = 0 ... count - 1 [ms]."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        function(i)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def stages(source: FolderSource, cache, contract: Contract, count: int) -> dict[str, float]:
    """Milliseconds per sample of every stage, in this process, one thread."""
    def file(i: int, pattern: str) -> str:
        return str(source.folders[i] / pattern.format(source.names[i]))

    raw = [source.read(i) for i in range(min(count, 8))]
    small = [to_network(sample, contract) for sample in raw]
    augment, n = Augment(color=0.3, blur=0.1, noise=0.1, jpeg=0.1), len(raw)
    rng = np.random.default_rng(0)
    files, cached = (MapDataset(s, range(count), contract) for s in (source, cache))
    files_augmented, cached_augmented = (MapDataset(s, range(count), contract, augment) for s in (source, cache))
    return {
        "originals: PNG, image": milliseconds(lambda i: cv2.imread(file(i, "rgb_{}.png")), count),
        "originals: PNG, alpha": milliseconds(lambda i: cv2.imread(file(i, "alpha_{}.png"), 0), count),
        "originals: EXR, depth": milliseconds(lambda i: exr.read_depth(file(i, "depth_{}.exr")), count),
        "originals: EXR, normals": milliseconds(lambda i: exr.read_vectors(file(i, "normal_{}.exr")), count),
        "originals: whole sample": milliseconds(source.read, count),
        "resize to the network": milliseconds(lambda i: to_network(raw[i % n], contract), count),
        "cache: whole sample, at size": milliseconds(cache.read, count),
        "augment: mirror and zoom": milliseconds(lambda i: augment.geometry(raw[i % n], rng), count),
        "augment: image": milliseconds(lambda i: augment.image(small[i % n].rgb, rng), count),
        "originals to tensors": milliseconds(lambda i: files[0, i], count),
        "cache to tensors": milliseconds(lambda i: cached[0, i], count),
        "originals to tensors, augmented": milliseconds(lambda i: files_augmented[0, i], count),
        "cache to tensors, augmented": milliseconds(lambda i: cached_augmented[0, i], count),
    }


def samples_per_second(source, contract: Contract, count: int, workers: int) -> float:
    """Throughput of the loader, without augmentation, once its processes run."""
    loader = create_loader(MapDataset(source, range(count), contract), ValBatches(count, 4, 0, 1), workers)
    for _ in loader:
        pass
    start = time.perf_counter()
    for _ in loader:
        pass
    return count / (time.perf_counter() - start)


def measure(config: DataloaderConfig, folder: Path) -> dict[str, float]:
    """All numbers; generated data and the cache go into `folder`."""
    root = config.data_root
    if root is None:
        root = folder / "data"
        write_dataset(SyntheticConfig(root, config.samples, 512, seed=0))
    prepare(PrepareConfig(root, folder / "cache", config.input_size))
    source, cache = open_source(root), open_source(folder / "cache")
    contract = Contract(input_size=(config.input_size, config.input_size))
    count = min(config.samples, len(source.names))
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    result = {f"{name} [ms]": value for name, value in stages(source, cache, contract, count).items()}
    for name, which in (("originals", source), ("cache", cache)):
        result[f"{name}, {config.workers} workers [samples/s]"] = samples_per_second(
            which, contract, count, config.workers)
    for suffix in ("", ", augmented"):
        result[f"cache over originals, one process{suffix}"] = (
            result[f"originals to tensors{suffix} [ms]"] / result[f"cache to tensors{suffix} [ms]"])
    rates = [result[f"{name}, {config.workers} workers [samples/s]"] for name in ("cache", "originals")]
    result["cache over originals, with workers"] = rates[0] / rates[1]
    return result


def main(config: DataloaderConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        result = measure(config, Path(folder))
    for name, value in result.items():
        print(f"{name:45}{value:10.2f}")
    if config.json:
        write_json(config.json, {"machine": machine.record(), "input_size": config.input_size,
                                 "samples": config.samples, **result})


if __name__ == "__main__":
    cli.run(DataloaderConfig, main, "python -m benchmarks.dataloader")
