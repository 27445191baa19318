"""python -m benchmarks.dataloader: how long reading samples takes, from original files, a cache and tar shards.

Milliseconds per sample of every stage, in one process, and samples per second with worker processes. What is compared
is read in turn, sample by sample and pass by pass, so that other load on the machine meets all alike. Without
--data-root it generates samples of 512x512.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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

    from dpt_deploy.cli.options import Count, Json, Workers, resolve_workers
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
    """Measure reading of SynthHuman's files, of a prepared cache, and of tar shards of both."""

    data_root: Path | None = None
    """Folder of samples. Default: generated ones."""
    input_size: int = 384
    """Height and width of the network's input [pixels]."""
    max_samples: int = 60
    """Samples to read."""
    workers: Workers = 2
    """Worker processes; auto is one per core, at most 8."""
    passes: Count = 3
    """Passes over the samples of each source, in one process and with worker processes."""
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
    """All numbers by name. Generated samples, the cache and the shards go into `folder`."""
    root = config.data_root
    if root is None:
        root = folder / "data"
        write_dataset(SyntheticConfig(root, config.max_samples, (512, 512), seed=0))
    size = (config.input_size, config.input_size)
    prepare(PrepareConfig(root, folder / "cache", size))
    prepare(PrepareConfig(root, folder / "shards", size, shards=True))
    prepare(PrepareConfig(root, folder / "packed", shards=True, originals=True))
    sources = {"originals": open_source(root), "originals in shards": open_source(folder / "packed"),
               "cache": open_source(folder / "cache"), "shards": open_source(folder / "shards")}
    contract = Contract(input_size=size)
    count, workers = min(config.max_samples, len(sources["cache"].names)), resolve_workers(config.workers)
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    result = time_stages(sources, contract, count) | time_sources(sources, contract, count, config.passes)
    result = {f"{name} [ms]": value for name, value in result.items()}
    # Those at training size take a tenth of the time: a pass reads them several times, and there are more passes.
    once = list(range(count))
    rates = samples_per_second(dict(list(sources.items())[:2]), contract, once, workers, config.passes)
    rates |= samples_per_second(dict(list(sources.items())[2:]), contract, 4 * once, workers, 4 * config.passes)
    result |= {f"{name}, {workers} workers [samples/s]": rate for name, rate in rates.items()}
    for faster, slower in (("cache", "originals"), ("shards", "originals"), ("shards", "cache"),
                           ("originals in shards", "originals")):
        for what in (": whole sample", " to tensors", " to tensors, augmented"):
            result[f"{faster} over {slower}{what}"] = result[f"{slower}{what} [ms]"] / result[f"{faster}{what} [ms]"]
        result[f"{faster} over {slower}, with workers"] = rates[faster] / rates[slower]
    return result


def time_stages(sources: dict[str, Any], contract: Contract, count: int) -> dict[str, float]:
    """Milliseconds per sample of every stage of reading original files, in one thread of this process."""
    originals: FolderSource = sources["originals"]

    def file(i: int, pattern: str) -> str:
        return str(originals.folders[i] / pattern.format(originals.names[i]))

    raw = [originals.read(i) for i in range(min(count, 8))]
    resized = [to_network(sample, contract) for sample in raw]
    augment, n = Augment(color=0.3, blur=0.1, noise=0.1, jpeg=0.1), len(raw)
    rng = np.random.default_rng(0)
    return median_ms({
        "originals: PNG, image": lambda i: cv2.imread(file(i, "rgb_{}.png")),
        "originals: PNG, alpha": lambda i: cv2.imread(file(i, "alpha_{}.png"), 0),
        "originals: EXR, depth": lambda i: exr.read_depth(file(i, "depth_{}.exr")),
        "originals: EXR, normals": lambda i: exr.read_vectors(file(i, "normal_{}.exr")),
        "resize to the network": lambda i: to_network(raw[i % n], contract),
        "augment: mirror and zoom": lambda i: augment.geometry(raw[i % n], rng),
        "augment: image": lambda i: augment.image(resized[i % n].rgb, rng),
    }, count)


def time_sources(sources: dict[str, Any], contract: Contract, count: int, passes: int) -> dict[str, float]:
    """Milliseconds per sample of every source, in turn, in one thread of this process."""
    augment = Augment(color=0.3, blur=0.1, noise=0.1, jpeg=0.1)
    plain = {name: MapDataset(source, range(count), contract) for name, source in sources.items()}
    augmented = {name: MapDataset(source, range(count), contract, augment) for name, source in sources.items()}
    return (median_ms({f"{name}: whole sample": source.read for name, source in sources.items()}, count, passes)
            | median_ms({f"{name} to tensors": partial(tensors, dataset) for name, dataset in plain.items()},
                        count, passes)
            | median_ms({f"{name} to tensors, augmented": partial(tensors, dataset)
                         for name, dataset in augmented.items()}, count, passes))


def tensors(dataset: MapDataset, i: int) -> dict[str, Any]:
    """Sample `i` as the loader reads it."""
    return dataset[0, i]


def median_ms(functions: dict[str, Callable[[int], object]], count: int, passes: int = 1) -> dict[str, float]:
    """Median times of functions of i = 0 ... count - 1 [ms]. They take turns, beginning with another one each time."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    names = list(functions)
    for i in [*range(count)] * passes:
        for name in names[i % len(names):] + names[: i % len(names)]:
            start = time.perf_counter()
            functions[name](i)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(values)) for name, values in times.items()}


def samples_per_second(
    sources: dict[str, Any], contract: Contract, positions: list[int], workers: int, passes: int
) -> dict[str, float]:
    """Throughput of the loader of each source without augmentation: the median of passes that take turns.

    The first pass of each, in which its processes start, does not count.
    """
    count, names = len(positions), list(sources)
    loaders = {name: create_loader(MapDataset(source, positions, contract), ValBatches(count, 4, 0, 1), workers)
               for name, source in sources.items()}
    times: dict[str, list[float]] = {name: [] for name in sources}
    for i in range(1 + passes):
        for name in names[i % len(names):] + names[: i % len(names)]:
            start = time.perf_counter()
            for _ in loaders[name]:
                pass
            times[name].append(time.perf_counter() - start)
    return {name: count / float(np.median(values[1:])) for name, values in times.items()}


def show(measured: dict[str, float]) -> None:
    """Print the numbers, one per line."""
    for name, value in measured.items():
        print(f"{name:45}{value:10.2f}")


if __name__ == "__main__":
    cli.run(DataloaderConfig, main, PROG, renamed=RENAMED)
