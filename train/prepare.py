"""Write a cache of samples at training size: `python -m train.prepare --data-root DIR --out CACHE`."""

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

    from dpt_deploy.cli.options import Count, Size, Workers, size_text
    from dpt_deploy.core.image_files import MAX_PIXELS

    from .commands import command
    from .data.cache import CacheSource, is_cache, write_cache
    from .data.conventions import AXES
    from .data.sample import Sample, to_network
    from .data.sources import BrokenSamples, Source, open_source
    from .data.workers import parallel
    from .monitoring.progress import progress_bar


@dataclass(frozen=True)
class PrepareConfig:
    """Write samples at training size into a cache, which is read several times as fast as the original files."""

    data_root: Path
    """Folder of samples, as for training."""
    out: Path
    """Folder of the cache. A sample of 384x384 takes 1.8 MB."""
    input_size: Size = (384, 384)
    """Size of the network's input [pixels]."""
    resize: ResizeRule = "stretch"
    """How images are brought to the input size; training must use the same rule."""
    normal_axes: str = AXES
    """How the files store the components of normals; the cache holds converted normals."""
    workers: Workers = "auto"
    """Processes that read samples; 0 is in this process, auto is one per core, at most 8."""
    max_broken: int = 20
    """Broken and incomplete samples that are skipped and named before the command stops with an error."""
    max_pixels: Count = MAX_PIXELS
    """Skip samples with more pixels than this."""
    verify: bool = False
    """Only check the cache in --out: every checksum, and that --data-root has not changed since."""


def prepare(config: PrepareConfig) -> tuple[int, int]:
    """Write the cache; returns how many samples were written, and skipped. Raises `BadInput` if too many are broken."""
    source = open_source(config.data_root, config.normal_axes, config.max_pixels)
    if config.out.resolve() == config.data_root.resolve() or is_cache(config.data_root):
        raise BadInput(f"data root {config.data_root}: expected original files, received a cache or the folder --out.")
    broken = BrokenSamples(source, config.max_broken, tqdm.write)
    contract = Contract(input_size=config.input_size, resize=config.resize)

    def samples() -> Iterator[Sample]:
        read = partial(_read, source=source, contract=contract)
        results = parallel(read, range(len(source)), config.workers)
        for name, result in zip(source.names, progress_bar(results, "prepare", len(source)), strict=True):
            if isinstance(result, Sample):
                yield result
            else:
                broken.add(name, result)

    return write_cache(config.out, samples(), len(source), contract, fingerprint(source, config)), len(broken)


def _read(position: int, source: Source, contract: Contract) -> Sample | str:
    """A sample at the contract's size, or why it cannot be read."""
    try:
        return to_network(source.read(position), contract)
    except BadInput as error:
        return str(error)


def fingerprint(source: Source, config: PrepareConfig) -> str:
    """Identifies what a cache was made from."""
    height, width = config.input_size
    size = height if height == width else size_text(config.input_size)
    return f"{source.fingerprint()} {size} {config.resize} {config.normal_axes}"


def verify(config: PrepareConfig) -> int:
    """Read every sample of the cache; returns how many. Raises `BadInput` if it is damaged or out of date."""
    cache = CacheSource.open(config.out)
    if cache.source != fingerprint(open_source(config.data_root, config.normal_axes), config):
        raise BadInput(f"{config.out} was made from other data or with other options. Run this without --verify.")
    for position in progress_bar(range(len(cache)), "verify"):
        cache.read(position)
    return len(cache)


def main(config: PrepareConfig) -> int:
    if config.verify:
        print(f"{verify(config)} samples in {config.out} are intact and up to date")
        return 0
    written, skipped = prepare(config)
    print(f"{written} samples in {config.out}. Train on them: {command('train')} "
          f"--data-root {config.out} --input-size {size_text(config.input_size)} --resize {config.resize}")
    return 1 if skipped else 0


COMMAND = cli.Command(PrepareConfig, main, f"python -m {__package__}.prepare")

if __name__ == "__main__":
    COMMAND.run()
