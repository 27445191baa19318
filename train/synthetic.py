"""Generate data in SynthHuman's format: `python -m train.synthetic --out DIR --count N --image-size 384 --seed K`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dpt_deploy import cli
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import cannot_write

with cli.needing("train"):
    from dpt_deploy.cli.options import Size, Workers, size_text

    from .commands import command
    from .data.cache import write_cache
    from .data.sample import Sample
    from .data.synthetic.scene import as_sample, file_index, generate, write_sample
    from .data.synthhuman import chunk_name
    from .data.workers import parallel
    from .monitoring.progress import progress_bar

RENAMED = {"--size": "--image-size", "--width": "--image-size HEIGHTxWIDTH"}


@dataclass(frozen=True)
class SyntheticConfig:
    """Generate labelled images of people made of ellipsoids, in SynthHuman's format."""

    out: Path
    """Folder to write; chunks SynthHuman_0000, ... are created inside it."""
    count: int = 300
    """Number of samples: faces, full bodies and upper bodies in turn."""
    image_size: Size = (256, 256)
    """Size of the images [pixels]."""
    seed: int = 0
    """Seed; another seed gives other people."""
    workers: Workers = "auto"
    """Processes that generate samples; 0 is in this process, auto is one per core, at most 8."""
    prepared: bool = False
    """Write a prepared cache instead of files: faster to write and to read."""

    def __post_init__(self) -> None:
        check_request(self.count, self.image_size)


def check_request(count: int, image_size: tuple[int, int]) -> None:
    """Raise `BadInput` unless so many samples of such a size can be generated."""
    if not 1 <= count <= 3 * 97_000:
        raise BadInput(f"--count: expected 1 to 291000 samples, received {count}.")
    if min(image_size) < 16:
        raise BadInput(f"image size: expected at least 16 pixels, received {size_text(image_size)}.")


def write_dataset(config: SyntheticConfig) -> None:
    """Write `config.count` samples. Raises `BadInput` if the folder cannot be written."""
    numbers = range(config.count)
    work = _as_sample if config.prepared else _write
    made = progress_bar(parallel(partial(work, config=config), numbers, config.workers), "generate", config.count)
    if config.prepared:
        height, width = config.image_size
        # This text identifies the data to runs that resume, so it stays as it was.
        size = height if height == width else size_text(config.image_size)
        source = f"train.synthetic seed {config.seed} size {size} count {config.count}"
        write_cache(config.out, made, config.count, Contract(input_size=config.image_size), source)
        return
    try:
        for _ in made:
            pass
    except OSError as error:
        raise cannot_write(config.out, error) from error


def _write(number: int, config: SyntheticConfig) -> None:
    index = file_index(number)
    folder = config.out / chunk_name(index)
    folder.mkdir(parents=True, exist_ok=True)
    write_sample(folder, index, generate(config.seed, number, *config.image_size))


def _as_sample(number: int, config: SyntheticConfig) -> Sample:
    return as_sample(generate(config.seed, number, *config.image_size), number)


def main(config: SyntheticConfig) -> None:
    write_dataset(config)
    print(f"{config.count} samples in {config.out}. Train on them: {command('train')} --data-root {config.out}")


COMMAND = cli.Command(SyntheticConfig, main, f"python -m {__package__}.synthetic", renamed=RENAMED)

if __name__ == "__main__":
    COMMAND.run()
