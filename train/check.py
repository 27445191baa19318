"""Check data before training on it: `python -m train.check --data-root DIR`.

Checks that the depth can be that of people, compares the stored normals with those from depth and intrinsics over all
48 signed permutations of the axes, and prints statistics of the data set.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

from dpt_deploy import cli
from dpt_deploy.core.errors import BadInput

with cli.needing("train"):
    from dpt_deploy.cli.options import Count, Limit, Place
    from dpt_deploy.core.image_files import MAX_PIXELS

    from .data.conventions import AXES, compare_conventions, require_assumed
    from .data.plausibility import implausible, plausible
    from .data.sources import BrokenSamples, open_source
    from .data.statistics import measure, readable, spread


@dataclass(frozen=True)
class CheckConfig:
    """Check a data set: its files, the range of its depth, and the convention of its normals."""

    data_root: Place
    """Folder of samples or tar shards, as for training."""
    max_samples: Limit = 32
    """Number of samples to read, evenly spaced over the data set."""
    normal_axes: str = AXES
    """How the files store the components of normals, as for training."""
    max_broken: int = 20
    """Broken and incomplete samples that are skipped and named before the command stops with an error."""
    max_pixels: Count = MAX_PIXELS
    """Skip samples with more pixels than this."""


def main(config: CheckConfig) -> int:
    """Exit status: 0 if the data can be trained on, 1 if samples were skipped."""
    source = open_source(config.data_root, config.normal_axes, config.max_pixels)
    broken = BrokenSamples(source, config.max_broken, print)
    samples = list(readable(source, spread(range(len(source)), config.max_samples), broken))
    kinds = Counter(source.kinds)
    print(f"{len(source)} samples: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items()))
    statistics = measure(samples)
    print(f"depth [m]: median {statistics.depth:.2f}, 1 % below {statistics.depth_low:.2f}, 1 % above "
          f"{statistics.depth_high:.2f}. With --depth-scale {statistics.depth:.1f}, the median is near the linear part "
          "of softplus")
    print(f"foreground: {statistics.coverage:.1%} of the pixels; focal length {statistics.focal:.2f} times the width")
    print("mean normal: " + ", ".join(f"{axis} {value:+.2f}" for axis, value in
                                      zip("xyz", statistics.normal, strict=True)))
    odd = {sample.name: reason for sample in samples if (reason := implausible(sample))}
    if odd:
        print(f"implausible depth in {len(odd)} of {len(samples)} samples:")
        print("\n".join(f"  {name}: {reason}" for name, reason in list(odd.items())[:5]))
        list(plausible(samples))
    convention = compare_conventions(samples, source.normal_axes)
    print("\n".join(convention.lines()))
    require_assumed(convention, prepared=source.input_size is not None)
    print(f"the convention fits, at {convention.pixels} pixels of {len(samples)} samples")
    return 1 if broken else 0


def _no_positional() -> None:
    """Raise `BadInput` if the data folder comes first, without --data-root, as it did in earlier versions."""
    if sys.argv[1:] and not sys.argv[1].startswith("-"):
        raise BadInput(f"expected options, received {sys.argv[1]!r}. For a data folder, use --data-root {sys.argv[1]}.")


RENAMED = {"--samples": "--max-samples", "--data": "--data-root"}
COMMAND = cli.Command(CheckConfig, main, f"python -m {__package__}.check", default=_no_positional, renamed=RENAMED)

if __name__ == "__main__":
    COMMAND.run()
