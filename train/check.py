"""Look at data before training on them: `python -m train.check DATA`.

Compares the stored normals with those from depth and intrinsics over all 48 signed permutations of
the axes, and prints what is typical of the set.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from dpt_deploy import cli
from dpt_deploy.errors import BadInput

with cli.needing("train"):
    import tyro

    from .geometry import AXES, all_axes, normals_from_depth, with_axes
    from .sources import Source, open_source
    from .statistics import measure


@dataclass(frozen=True)
class CheckConfig:
    """Check a data set: files, normals' convention, depth statistics."""

    data: Annotated[Path, tyro.conf.Positional]
    """Folder of samples, as for --data-root."""
    samples: int = 32
    """How many samples to look at, spread over the set."""
    normal_axes: str = AXES
    """What the files' three components are, as for training."""


@dataclass(frozen=True)
class Convention:
    """How well each reading of the stored normals fits the depth."""

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
        shown += [AXES] if AXES not in shown else []
        return ["stored as   median angle to normals from depth [deg]",
                *(f"{axes:11} {self.medians[axes]:10.2f}{'   assumed' if axes == AXES else ''}" for axes in shown)]


def compare_conventions(source: Source, positions: Sequence[int], per_sample: int = 4000) -> Convention:
    """Compare stored and computed normals over `positions`. Raises `BadInput` when nothing can be compared."""
    stored, computed, broken = [], [], []
    for position in positions:
        try:
            sample = source.read(position)
        except BadInput as error:
            broken.append(str(error))
            continue
        normals, holds = normals_from_depth(sample.depth, sample.intrinsics)
        holds &= np.abs(sample.normals).sum(axis=2) > 0
        chosen = np.flatnonzero(holds)[:: max(1, int(holds.sum()) // per_sample)]
        stored.append(sample.normals.reshape(-1, 3)[chosen])
        computed.append(normals.reshape(-1, 3)[chosen])
    pixels = sum(map(len, stored))
    if pixels < 100:
        raise BadInput(
            f"data: normals could be compared with depth at {pixels} pixels only, of {len(positions)} samples. "
            + (f"The last broken one: {broken[-1]}" if broken else "Check that depth, normals and intrinsics belong "
               "together, or train with --no-check-data.")
        )
    a, b = np.concatenate(stored), np.concatenate(computed)
    medians = {}
    for axes in all_axes():
        cosine = np.clip((with_axes(a, axes) * b).sum(axis=1), -1, 1)
        medians[axes] = float(np.degrees(np.arccos(np.median(cosine))))
    return Convention(dict(sorted(medians.items(), key=lambda entry: entry[1])), pixels)


def check_convention(source: Source, positions: Sequence[int]) -> Convention:
    """Raise `BadInput`, with the table, unless the normals as `source` gives them fit the depth best as they are."""
    convention = compare_conventions(source, positions)
    if convention.best != AXES:
        table = "\n  ".join(convention.lines())
        raise BadInput(
            "the normals do not follow the assumed convention (x right, y up, z towards the viewer): read as "
            f"{convention.best} they fit the depth better.\n  {table}\n"
            f"If that is how these files store them, give --normal-axes={convention.best}; otherwise check depth and "
            "intrinsics, or train with --no-check-data."
        )
    return convention


def spread(count: int, limit: int) -> list[int]:
    """Up to `limit` positions spread over range(count)."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).astype(int)).tolist()


def main(config: CheckConfig) -> None:
    source = open_source(config.data, config.normal_axes)
    positions = spread(len(source), config.samples)
    kinds = Counter(source.kinds)
    print(f"{len(source)} samples: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    incomplete = getattr(source, "incomplete", [])
    for line in incomplete[:5]:
        print(f"incomplete: {line}")
    if len(incomplete) > 5:
        print(f"incomplete: {len(incomplete) - 5} more")
    statistics = measure(source, positions, len(positions))
    print(f"depth [m]: median {statistics.depth:.2f}, 1 % below {statistics.depth_low:.2f}, 1 % above "
          f"{statistics.depth_high:.2f}: --depth-scale {statistics.depth:.1f} lets a new model start there "
          "(softplus near its linear part)")
    print(f"foreground: {statistics.coverage:.1%} of the pixels; focal length {statistics.focal:.2f} times the width")
    print("mean normal: " + ", ".join(f"{axis} {value:+.2f}" for axis, value in
                                      zip("xyz", statistics.normal, strict=True)))
    convention = compare_conventions(source, positions)
    print("\n".join(convention.lines()))
    check_convention(source, positions)
    print(f"the convention fits, at {convention.pixels} pixels of {len(positions)} samples")


if __name__ == "__main__":
    cli.run(CheckConfig, main, "python -m train.check")
