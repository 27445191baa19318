"""python -m demo.people: generate people with Anny's body, in a prepared cache to train on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dpt_deploy import cli
from dpt_deploy.cli.options import Size, Workers, size_text
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from train.data.cache import write_cache
from train.data.workers import parallel
from train.monitoring.progress import progress_bar
from train.synthetic import check_request

from .samples import bodies, sample


@dataclass(frozen=True)
class PeopleConfig:
    """Generate labelled images of people with Anny's body, as a prepared cache."""

    out: Path
    """Folder to write."""
    count: int = 3000
    """Number of samples: faces, full bodies and upper bodies in turn."""
    image_size: Size = (128, 128)
    """Size of the images [pixels]."""
    seed: int = 0
    """Seed; another seed gives other people."""
    ellipsoids: int = 0
    """Take every n-th sample from `train.synthetic` instead; 0 takes none."""
    workers: Workers = "auto"
    """Processes that generate samples; 0 is in this process, auto is one per core, at most 8."""

    def __post_init__(self) -> None:
        check_request(self.count, self.image_size)
        if self.ellipsoids < 0:
            raise BadInput(f"--ellipsoids: expected 0 or a number above 0, received {self.ellipsoids}.")


def main(config: PeopleConfig) -> None:
    bodies()  # a missing package is an error of this process
    work = partial(sample, seed=config.seed, image_size=config.image_size, ellipsoids=config.ellipsoids)
    made = progress_bar(parallel(work, range(config.count), config.workers), "generate", config.count)
    source = (f"demo.people seed {config.seed} size {size_text(config.image_size)} count {config.count} "
              f"ellipsoids {config.ellipsoids}")
    write_cache(config.out, made, config.count, Contract(input_size=config.image_size), source)
    print(f"{config.count} samples in {config.out}.")


COMMAND = cli.Command(PeopleConfig, main, f"python -m {__package__}")

if __name__ == "__main__":
    COMMAND.run()
