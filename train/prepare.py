"""Write a cache of samples at training size, or tar shards: `python -m train.prepare --data-root DIR --out CACHE`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dpt_deploy import cli
from dpt_deploy.core.contract import Contract, ResizeRule
from dpt_deploy.core.errors import BadInput

with cli.needing("train"):
    from tqdm import tqdm

    from dpt_deploy.cli.options import Count, Place, Size, Workers, size_text
    from dpt_deploy.core.image_files import MAX_PIXELS

    from .commands import command
    from .data import shard_files
    from .data.cache import CacheSource, is_cache, write_cache
    from .data.conventions import AXES
    from .data.sample import to_network
    from .data.shards import ShardSource, open_shards
    from .data.sources import BrokenSamples, Source, open_source
    from .data.synthhuman import FILES, FolderSource
    from .data.workers import parallel
    from .monitoring.progress import progress_bar


@dataclass(frozen=True)
class PrepareConfig:
    """Write samples at training size into a cache or tar shards, which are read several times as fast as the original
    files; or pack the original files into shards."""

    data_root: Place
    """Folder of samples or tar shards, as for training."""
    out: Path
    """Folder of the cache or of the shards. A sample of 384x384 takes 1.8 MB."""
    input_size: Size = (384, 384)
    """Size of the network's input [pixels]."""
    resize: ResizeRule = "stretch"
    """How images are brought to the input size; training must use the same rule."""
    normal_axes: str = AXES
    """How the files store the components of normals; the cache holds converted normals."""
    shards: bool = False
    """Write tar shards (shard-000000.tar, ...) in WebDataset's naming instead of a cache: they can be copied to a
    bucket, and training reads them from there."""
    originals: bool = False
    """With --shards: pack the original files as they are. They are neither resized nor decoded."""
    shard_megabytes: Count = 1024
    """With --shards: a shard is closed before it would get larger."""
    workers: Workers = "auto"
    """Processes that read samples; 0 is in this process, auto is one per core, at most 8."""
    max_broken: int = 20
    """Broken and incomplete samples that are skipped and named before the command stops with an error."""
    max_pixels: Count = MAX_PIXELS
    """Skip samples with more pixels than this."""
    verify: bool = False
    """Only check the cache or the shards in --out: every checksum, and that --data-root has not changed since."""


def prepare(config: PrepareConfig) -> tuple[int, int]:
    """Write the cache or the shards; returns how many samples were written, and skipped.

    Raises:
        BadInput: Too many samples are broken, --data-root holds prepared samples, or --out cannot be written.
    """
    source = _originals(config)
    if config.out.resolve() == Path(config.data_root).resolve():
        raise BadInput(f"--out {config.out}: expected another folder than --data-root. Give a new one.")
    broken = BrokenSamples(source, config.max_broken, tqdm.write)
    contract = Contract(input_size=config.input_size, resize=config.resize)
    made_from = fingerprint(source, config)

    def results(function: Callable[[int], Any]) -> Iterator[tuple[str, Any]]:
        """Name and what the function makes of each sample that can be read."""
        made = parallel(partial(_attempt, function=function), range(len(source)), config.workers)
        for name, result in zip(source.names, progress_bar(made, "prepare", len(source)), strict=True):
            if isinstance(result, str):
                broken.add(name, result)
            else:
                yield name, result

    if config.shards:
        pack = partial(_packed_files, source=source) if config.originals else \
            partial(_packed, source=source, contract=contract, made_from=made_from)
        written, _ = shard_files.write_shards(config.out, results(pack), made_from, config.shard_megabytes << 20)
    else:
        read = partial(_at_size, source=source, contract=contract)
        samples = (sample for _, sample in results(read))
        written = write_cache(config.out, samples, len(source), contract, made_from)
    return written, len(broken)


def _originals(config: PrepareConfig) -> FolderSource | ShardSource:
    """The source of original files in --data-root."""
    if config.originals and not config.shards:
        raise BadInput("--originals: expected --shards as well. Add it, or omit --originals for a cache.")
    source = open_source(config.data_root, config.normal_axes, config.max_pixels)
    if source.input_size is not None:
        raise BadInput(f"data root {source.root}: expected original files, received samples that are prepared already.")
    return source


def _attempt(position: int, function: Callable[[int], Any]) -> Any:
    """What `function` makes of a sample, or why it cannot be read: text."""
    try:
        return function(position)
    except BadInput as error:
        return str(error)


def _at_size(position: int, source: Source, contract: Contract) -> Any:
    return to_network(source.read(position), contract)


def _packed(position: int, source: Source, contract: Contract, made_from: str) -> dict[str, bytes]:
    return shard_files.packed(_at_size(position, source, contract), contract, made_from)


def _packed_files(position: int, source: FolderSource | ShardSource) -> dict[str, bytes]:
    contents = [bytes(data) for _, data in source.files(position)]
    return dict(zip((pattern.replace("_{}", "") for pattern in FILES), contents, strict=True))


def fingerprint(source: Source, config: PrepareConfig) -> str:
    """Identifies what a cache or a set of shards was made from."""
    if config.originals:
        return source.fingerprint()
    height, width = config.input_size
    size = height if height == width else size_text(config.input_size)
    return f"{source.fingerprint()} {size} {config.resize} {config.normal_axes}"


def verify(config: PrepareConfig) -> int:
    """Read every sample of the cache or the shards; returns how many. Raises `BadInput` if damaged or out of date."""
    if is_cache(config.out):
        made = CacheSource.open(config.out)
        made_from, again = made.source, "Run this without --verify."
    else:
        made = open_shards(config.out, config.normal_axes, config.max_pixels)
        made_from = (shard_files.read_record(str(config.out / shard_files.RECORD)) or {}).get("source")
        again = "Delete the folder, and run this without --verify."  # shards are never overwritten
        if made.incomplete:
            raise BadInput(f"{config.out} is damaged: {made.incomplete[0]}. {again}")
    if made_from != fingerprint(_originals(config), config):
        raise BadInput(f"{config.out} was made from other data or with other options. {again}")
    for position in progress_bar(range(len(made)), "verify"):
        made.read(position)
    return len(made)


def main(config: PrepareConfig) -> int:
    if config.verify:
        print(f"{verify(config)} samples in {config.out} are intact and up to date")
        return 0
    written, skipped = prepare(config)
    options = "" if config.originals else f" --input-size {size_text(config.input_size)} --resize {config.resize}"
    print(f"{written} samples in {config.out}. Train on them: {command('train')} --data-root {config.out}{options}")
    return 1 if skipped else 0


COMMAND = cli.Command(PrepareConfig, main, f"python -m {__package__}.prepare")

if __name__ == "__main__":
    COMMAND.run()
