"""Make a cache of samples at training size: `python -m train.prepare --data-root DIR --out CACHE`.

Train on it with `python -m train --data-root CACHE`. 384 px takes 1.8 MB per sample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dpt_deploy import cli
from dpt_deploy.core.contract import Contract, ResizeRule
from dpt_deploy.core.errors import BadInput

with cli.needing("train"):
    from tqdm import tqdm

    from train.broken import Broken
    from train.cache import CacheSource, is_cache, write_cache
    from train.geometry import AXES
    from train.parallel import parallel
    from train.sample import Sample, to_network
    from train.sources import Source, open_source


@dataclass(frozen=True)
class PrepareConfig:
    """Write samples at training size into a cache that reads several times as fast as the originals."""

    data_root: Path
    """Folder of samples, as for training."""
    out: Path
    """Folder of the cache."""
    input_size: int = 384
    """Height and width of the network's input [pixels]."""
    resize: ResizeRule = "stretch"
    """How images reach it; training must use the same."""
    normal_axes: str = AXES
    """What the files' normal components are; the cache holds them converted."""
    workers: int = 0
    """Processes; 0 is one per core."""
    max_broken: int = 20
    """Broken and incomplete samples that are named and left out before the command stops."""
    verify: bool = False
    """Only check the cache in `out`: every sample's checksum, and that it was made from `data_root` as it is."""


def _read(position: int, source: Source, contract: Contract) -> Sample | str:
    try:
        return to_network(source.read(position), contract)
    except BadInput as error:
        return str(error)


def prepare(config: PrepareConfig) -> int:
    """Write the cache; returns how many samples it holds. Raises `BadInput` for too many broken samples."""
    source = open_source(config.data_root, config.normal_axes)
    if config.out.resolve() == config.data_root.resolve() or is_cache(config.data_root):
        raise BadInput(f"data root {config.data_root}: expected SynthHuman files to read, received a cache or --out.")
    broken = Broken(source, config.max_broken, tqdm.write)
    contract = Contract(input_size=(config.input_size, config.input_size), resize=config.resize)

    def samples() -> Iterator[Sample]:
        read = partial(_read, source=source, contract=contract)
        results = parallel(read, range(len(source.names)), config.workers)
        for name, result in zip(source.names, tqdm(results, "prepare", len(source.names)), strict=True):
            if isinstance(result, Sample):
                yield result
            else:
                broken.add(name, result)

    return write_cache(config.out, samples(), len(source.names), contract, fingerprint(source, config))


def fingerprint(source: Source, config: PrepareConfig) -> str:
    """What a cache is made from."""
    return f"{source.fingerprint()} {config.input_size} {config.resize} {config.normal_axes}"


def verify(config: PrepareConfig) -> int:
    """Read every sample of the cache; returns how many. Raises `BadInput` for a damaged or outdated cache."""
    cache = CacheSource.open(config.out)
    if cache.source != fingerprint(open_source(config.data_root, config.normal_axes), config):
        raise BadInput(f"{config.out} was made from other data, or with other options. Run this without --verify.")
    for position in tqdm(range(len(cache)), "verify"):
        cache.read(position)
    return len(cache)


def main(config: PrepareConfig) -> None:
    if config.verify:
        print(f"{verify(config)} samples in {config.out} are whole and up to date")
        return
    print(f"{prepare(config)} samples in {config.out}. Train on them: python -m train --data-root {config.out} "
          f"--input-size {config.input_size} --resize {config.resize}")


COMMAND = cli.Command(PrepareConfig, main, "python -m train.prepare")

if __name__ == "__main__":
    COMMAND.run()
