"""python -m benchmarks.dataloader: how long reading samples takes, from the original files and from a prepared cache.

Milliseconds per sample of every stage, in one process, and samples per second with worker processes. Without
--data-root it generates samples of 512x512.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import environment
from benchmarks.results import write_result
from dpt_deploy import cli
from dpt_deploy.core.contract import Contract

with cli.needing("train"):
    import cv2
    import torch

    from dpt_deploy.cli.options import Json, Workers, resolve_workers
    from train.data import exr
    from train.data.augmentation import Augment
    from train.data.dataset import MapDataset, ValBatches, create_loader
    from train.data.sample import to_network
    from train.data.sources import open_source
    from train.data.synthhuman import FolderSource
    from train.prepare import PrepareConfig, prepare
    from train.synthetic import SyntheticConfig, write_dataset

PROG = "python -m benchmarks.dataloader"
RENAMED = {"--samples": "--max-samples"}


@dataclass(frozen=True)
class DataloaderConfig:
    """Measure reading of SynthHuman's files and of a prepared cache."""

    data_root: Path | None = None
    """Folder of samples. Default: generated ones."""
    input_size: int = 384
    """Height and width of the network's input [pixels]."""
    max_samples: int = 60
    """Samples to read."""
    workers: Workers = 2
    """Worker processes; auto is one per core, at most 8."""
    out: Path | None = None
    """Folder of the result file. Default: benchmarks/results."""
    name: str = "dataloader"
    """Name of the result file: NAME.json."""
    json: Json = False


def main(config: DataloaderConfig) -> None:
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(config, Path(folder))
    result = {"machine": environment.record(), "input_size": config.input_size, "samples": config.max_samples}
    write_result(config, result | measured, lambda _: show(measured))


def measure(config: DataloaderConfig, folder: Path) -> dict[str, float]:
    """All numbers by name. Generated samples and the cache go into `folder`."""
    root = config.data_root
    if root is None:
        root = folder / "data"
        write_dataset(SyntheticConfig(root, config.max_samples, (512, 512), seed=0))
    prepare(PrepareConfig(root, folder / "cache", (config.input_size, config.input_size)))
    originals, cache = open_source(root), open_source(folder / "cache")
    contract = Contract(input_size=(config.input_size, config.input_size))
    count, workers = min(config.max_samples, len(originals.names)), resolve_workers(config.workers)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    result = {f"{name} [ms]": value for name, value in time_stages(originals, cache, contract, count).items()}
    rates = {name: samples_per_second(source, contract, count, workers)
             for name, source in (("originals", originals), ("cache", cache))}
    result |= {f"{name}, {workers} workers [samples/s]": rate for name, rate in rates.items()}
    for suffix in ("", ", augmented"):
        result[f"cache over originals, one process{suffix}"] = (
            result[f"originals to tensors{suffix} [ms]"] / result[f"cache to tensors{suffix} [ms]"])
    return result | {"cache over originals, with workers": rates["cache"] / rates["originals"]}


def time_stages(originals: FolderSource, cache: Any, contract: Contract, count: int) -> dict[str, float]:
    """Milliseconds per sample of every stage, in one thread of this process."""
    def file(i: int, pattern: str) -> str:
        return str(originals.folders[i] / pattern.format(originals.names[i]))

    raw = [originals.read(i) for i in range(min(count, 8))]
    resized = [to_network(sample, contract) for sample in raw]
    augment, n = Augment(color=0.3, blur=0.1, noise=0.1, jpeg=0.1), len(raw)
    rng = np.random.default_rng(0)
    from_files, from_cache = (MapDataset(source, range(count), contract) for source in (originals, cache))
    files_augmented, cache_augmented = (MapDataset(source, range(count), contract, augment)
                                        for source in (originals, cache))
    return {
        "originals: PNG, image": median_ms(lambda i: cv2.imread(file(i, "rgb_{}.png")), count),
        "originals: PNG, alpha": median_ms(lambda i: cv2.imread(file(i, "alpha_{}.png"), 0), count),
        "originals: EXR, depth": median_ms(lambda i: exr.read_depth(file(i, "depth_{}.exr")), count),
        "originals: EXR, normals": median_ms(lambda i: exr.read_vectors(file(i, "normal_{}.exr")), count),
        "originals: whole sample": median_ms(originals.read, count),
        "resize to the network": median_ms(lambda i: to_network(raw[i % n], contract), count),
        "cache: whole sample, at size": median_ms(cache.read, count),
        "augment: mirror and zoom": median_ms(lambda i: augment.geometry(raw[i % n], rng), count),
        "augment: image": median_ms(lambda i: augment.image(resized[i % n].rgb, rng), count),
        "originals to tensors": median_ms(lambda i: from_files[0, i], count),
        "cache to tensors": median_ms(lambda i: from_cache[0, i], count),
        "originals to tensors, augmented": median_ms(lambda i: files_augmented[0, i], count),
        "cache to tensors, augmented": median_ms(lambda i: cache_augmented[0, i], count),
    }


def median_ms(function: Callable[[int], object], count: int) -> float:
    """Median time of `function(i)` over i = 0 ... count - 1 [ms]."""
    times = []
    for i in range(count):
        start = time.perf_counter()
        function(i)
        times.append(1000 * (time.perf_counter() - start))
    return float(np.median(times))


def samples_per_second(source: Any, contract: Contract, count: int, workers: int) -> float:
    """Throughput of the loader without augmentation, on its second pass, when its processes are running."""
    loader = create_loader(MapDataset(source, range(count), contract), ValBatches(count, 4, 0, 1), workers)
    for _ in loader:
        pass
    start = time.perf_counter()
    for _ in loader:
        pass
    return count / (time.perf_counter() - start)


def show(measured: dict[str, float]) -> None:
    """Print the numbers, one per line."""
    for name, value in measured.items():
        print(f"{name:45}{value:10.2f}")


if __name__ == "__main__":
    cli.run(DataloaderConfig, main, PROG, renamed=RENAMED)
