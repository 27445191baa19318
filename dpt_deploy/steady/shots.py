"""Where one shot of a video ends and another begins."""

from __future__ import annotations

import numpy as np

LOST = 0.2
"""Share of pixels that the flow finds again, below which a frame begins a shot. Within the generated clips of
benchmarks/steady.py it is above 0.4, and between them below 0.1."""


def is_cut(trust: np.ndarray) -> bool:
    """Whether a frame begins a new shot, by the trust (H, W) in the flow to the frame before it.

    A change of exposure is no cut, because the flow does not depend on it. A pan so fast that nothing is found again
    is one: there is nothing to hold.
    """
    return float(trust.mean()) < LOST
