"""Look at data before training on them: `python -m train.check DATA`.

Compares the stored normals with those from depth and intrinsics over all 48 signed permutations of
the axes, and prints what is typical of the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from dpt_deploy import cli
from dpt_deploy.core.errors import BadInput

with cli.needing("train"):
    import tyro

    from train.broken import Broken
    from train.geometry import AXES, all_axes, composed, normals_from_depth, with_axes
    from train.sample import Sample
    from train.sources import FolderSource, Source, open_source
    from train.statistics import measure, readable, spread


@dataclass(frozen=True)
class CheckConfig:
    """Check a data set: files, normals' convention, depth statistics."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of samples, as for --data-root."""
    samples: int = 32
    """How many samples to look at, spread over the set."""
    normal_axes: str = AXES
    """What the files' three components are, as for training."""
    max_broken: int = 20
    """Incomplete samples that are named and left out before the command stops."""


@dataclass(frozen=True)
class Convention:
    """How well each reading of the files' normals fits the depth."""

    assumed: str
    """The reading that the samples came with."""
    medians: dict[str, float]
    """Median angle between normals read so and those from depth [degrees], best first."""
    pixels: int
    """Pixels compared."""

    @property
    def best(self) -> str:
        return next(iter(self.medians))

    def lines(self, count: int = 5) -> list[str]:
        """A table: the best readings, and the assumed one."""
        shown = list(self.medians)[:count]
        shown += [self.assumed] if self.assumed not in shown else []
        marks = {self.assumed: "   assumed"}
        return ["stored as   median angle to normals from depth [deg]",
                *(f"{axes:11} {self.medians[axes]:10.2f}{marks.get(axes, '')}" for axes in shown)]


def compare_conventions(samples: Iterable[Sample], assumed: str = AXES, per_sample: int = 4000) -> Convention:
    """Compare the normals of samples, read as `assumed`, with those from depth.

    Raises `BadInput` when nothing can be compared.
    """
    stored, computed = [], []
    for sample in samples:
        normals, holds = normals_from_depth(sample.depth, sample.intrinsics)
        holds &= np.abs(sample.normals).sum(axis=2) > 0
        chosen = np.flatnonzero(holds)[:: max(1, int(holds.sum()) // per_sample)]
        stored.append(sample.normals.reshape(-1, 3)[chosen])
        computed.append(normals.reshape(-1, 3)[chosen])
    pixels = sum(map(len, stored))
    if pixels < 100:
        raise BadInput(
            f"data: normals could be compared with depth at {pixels} pixels only, of {len(stored)} samples. Check that "
            "depth, normals and intrinsics belong together, or train with --no-check-data."
        )
    a, b = np.concatenate(stored), np.concatenate(computed)
    medians = {}
    for axes in all_axes():
        cosine = np.clip((with_axes(a, axes) * b).sum(axis=1), -1, 1)
        medians[composed(assumed, axes)] = float(np.degrees(np.arccos(np.median(cosine))))
    return Convention(assumed, dict(sorted(medians.items(), key=lambda entry: entry[1])), pixels)


def require_assumed(convention: Convention, source: Source) -> None:
    """Raise `BadInput`, with the table and what to do, unless the assumed reading fits the depth best."""
    if convention.best == convention.assumed:
        return
    table = "\n  ".join(convention.lines())
    if isinstance(source, FolderSource):
        what = f"If that is how these files store them, give --normal-axes={convention.best}"
    else:
        what = ("The cache holds them converted: run python -m train.check on the files it was made from, and prepare "
                "it again with the --normal-axes that it names")
    raise BadInput(
        "the normals do not follow the assumed convention (x right, y up, z towards the viewer): read as "
        f"{convention.best} they fit the depth better than as {convention.assumed}.\n  {table}\n"
        f"{what}; otherwise check depth and intrinsics, or train with --no-check-data."
    )


def main(config: CheckConfig) -> None:
    source = open_source(config.data, config.normal_axes)
    Broken(source, config.max_broken, print)
    samples = list(readable(source, spread(range(len(source)), config.samples)))
    kinds = Counter(source.kinds)
    print(f"{len(source)} samples: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    statistics = measure(samples)
    print(f"depth [m]: median {statistics.depth:.2f}, 1 % below {statistics.depth_low:.2f}, 1 % above "
          f"{statistics.depth_high:.2f}: --depth-scale {statistics.depth:.1f} lets a new model start there "
          "(softplus near its linear part)")
    print(f"foreground: {statistics.coverage:.1%} of the pixels; focal length {statistics.focal:.2f} times the width")
    print("mean normal: " + ", ".join(f"{axis} {value:+.2f}" for axis, value in
                                      zip("xyz", statistics.normal, strict=True)))
    convention = compare_conventions(samples, source.normal_axes)
    print("\n".join(convention.lines()))
    require_assumed(convention, source)
    print(f"the convention fits, at {convention.pixels} pixels of {len(samples)} samples")


COMMAND = cli.Command(CheckConfig, main, "python -m train.check")

if __name__ == "__main__":
    COMMAND.run()
