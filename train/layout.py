"""The published layout of SynthHuman: names, index ranges, units.

298,008 samples in chunks of 5,000 (SynthHuman_0000, ...): 98,040 faces, then 99,976 full bodies,
then 99,992 upper bodies. Each is rgb_0000000.png, alpha_0000000.png, depth_0000000.exr (z-depth in
cm), normal_0000000.exr and cam_0000000.txt (3x3 intrinsics in pixels).
"""

from __future__ import annotations

KINDS = ("face", "full_body", "upper_body")
FIRST_INDEX = {"face": 0, "full_body": 98_040, "upper_body": 198_016}
CHUNK = 5_000
NO_DEPTH = 65504.0
"""The depth value that says "none": the largest finite half."""


def kind_of_index(index: int) -> str:
    """face, full_body or upper_body, from the index in a sample's file names."""
    return max((first, kind) for kind, first in FIRST_INDEX.items() if index >= first)[1]


def chunk_name(index: int) -> str:
    """The folder of sample `index`."""
    return f"SynthHuman_{index // CHUNK:04d}"
