"""Inputs and outputs of the graphs: names, dtypes, shapes, units, ranges, and the resize rule.

Training, both graphs, both runtimes and the parity check use these definitions.

**Conventions.** Images are RGB. Depth is z-depth in metres, or relative if the contract says so. Normals are unit
vectors in camera space: x right, y up, z towards the viewer. A wall facing the camera has the normal (0, 0, 1).
Alpha is foreground coverage in [0, 1].

**Resize rule.** Frames are resized to the network's input, and maps back to the frame's size, with the
separable antialiased triangle filter of
`torch.nn.functional.interpolate(mode="bilinear", antialias=True, align_corners=False)`. With
`resize="letterbox"` the frame keeps its aspect ratio, is centred, and is padded by repeating its edge
pixels; `content_box` returns its position.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import BadInput, ContractError

HEADS = ("depth", "normals", "alpha")
RESIZE_RULES = ("stretch", "letterbox")
MAX_INPUT_SIZE = 1 << 16
"""The largest height or width of the network's input [pixels]."""
MAX_NUMBER = 1e9
"""The largest mean or standard deviation that a file may state."""

ResizeRule = Literal["stretch", "letterbox"]
DepthKind = Literal["metric", "relative"]
DEPTHS: dict[str, str] = {
    "metric": "z-depth in metres",
    "relative": "relative depth without unit, larger is farther",
}
"""How a contract's file words the kind of depth. Bundles of a trained checkpoint are metric; imported ones say."""
MEANINGS: dict[str, str] = {
    "normals": "unit vectors, camera space: x right, y up, z to the viewer",
    "alpha": "foreground coverage from 0 to 1",
}
"""What the numbers of the other maps are, as files with maps word it."""
Graph = Literal["model", "frame"]


@dataclass(frozen=True)
class TensorSpec:
    """An input or output of a graph. A string in `shape` names a dynamic axis."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    unit: str
    range: tuple[float | None, float | None]
    meaning: str

    def check(self, array: Any) -> None:
        """Raise `ContractError` unless `array` has this dtype and shape. Dynamic axes must not be empty."""
        shape, dtype = tuple(array.shape), str(array.dtype).removeprefix("torch.")
        fits = len(shape) == len(self.shape) and all(
            have > 0 if isinstance(want, str) else have == want for have, want in zip(shape, self.shape, strict=True)
        )
        if dtype != self.dtype or not fits:
            raise ContractError(
                f"{self.name}: expected {self.dtype} {list(self.shape)}, received {dtype} {list(shape)}. {self.meaning}"
            )


@dataclass(frozen=True)
class Box:
    """The region of the network's input that a frame covers [pixels]."""

    top: int
    left: int
    height: int
    width: int


def content_box(frame_size: tuple[int, int], input_size: tuple[int, int], resize: ResizeRule) -> Box:
    """The region that a frame of `frame_size` (H, W) covers in an input of `input_size` (H, W).

    Uses integer arithmetic, so every language and backend gets the same pixels.
    """
    (frame_h, frame_w), (input_h, input_w) = frame_size, input_size
    if resize == "stretch":
        return Box(0, 0, input_h, input_w)
    height = max(1, min(input_h, (2 * frame_h * input_w + frame_w) // (2 * frame_w)))
    width = max(1, min(input_w, (2 * frame_w * input_h + frame_h) // (2 * frame_h)))
    return Box((input_h - height) // 2, (input_w - width) // 2, height, width)


def resize_weights(size_in: int, size_out: int) -> np.ndarray:
    """Triangle-filter weights, float32 (size_out, size_in), computed in float64. Rows sum to 1.

    `weights @ signal` resizes a signal of length `size_in`, with antialiasing when downscaling.
    """
    scale = size_in / size_out
    support = max(scale, 1.0)
    centres = (np.arange(size_out) + 0.5) * scale
    distance = np.abs(np.arange(size_in)[None, :] + 0.5 - centres[:, None]) / support
    weights = np.clip(1.0 - distance, 0.0, None)
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def check_heads(heads: tuple[str, ...]) -> None:
    """Raise `BadInput` unless `heads` is a non-empty subset of depth, normals, alpha in that order."""
    if not heads or list(heads) != [head for head in HEADS if head in heads]:
        raise BadInput(
            f"heads: expected a non-empty subset of {', '.join(HEADS)}, in that order, "
            f"received {', '.join(heads) or 'nothing':.100}."
        )


def depth_meaning(kind: DepthKind, canonical_focal: float = 0.0, pixels: str = "pixels") -> str:
    """What the numbers of depth are, in words. `canonical_focal` [`pixels`] is 0 if the network has none."""
    if canonical_focal:
        return (f"z-depth for a focal length of {canonical_focal:g} {pixels}: times the camera's own over it, it is in "
                "metres")
    return DEPTHS[kind]


def frame_focal(
    focal: float, frame_size: tuple[int, int], input_size: tuple[int, int], resize: ResizeRule
) -> float:
    """A focal length [pixels of an input of `input_size` (H, W)] in pixels of a frame of `frame_size`, along x."""
    return focal * frame_size[1] / content_box(frame_size, input_size, resize).width


@dataclass(frozen=True)
class Contract:
    """What a program must know to prepare a bundle's inputs and interpret its outputs."""

    input_size: tuple[int, int] = (384, 384)
    """Height and width of the network's input [pixels]."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from RGB in [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides RGB after subtracting `mean`."""
    resize: ResizeRule = "stretch"
    """How a frame is resized to `input_size`."""
    heads: tuple[str, ...] = HEADS
    """The maps that the graphs output: a non-empty subset of depth, normals, alpha in that order."""
    depth: DepthKind = "metric"
    """metric: z-depth in metres. relative: no unit, only differences within one map mean something."""

    def __post_init__(self) -> None:
        check_heads(self.heads)
        if self.depth not in DEPTHS:
            raise BadInput(f"depth: expected one of {', '.join(DEPTHS)}, received {self.depth!r:.100}.")
        if self.resize not in RESIZE_RULES:
            raise BadInput(f"resize: expected one of {', '.join(RESIZE_RULES)}, received {self.resize!r:.100}.")

    def content_box(self, frame_size: tuple[int, int]) -> Box:
        """The region that a frame of `frame_size` (H, W) covers in the network's input."""
        return content_box(frame_size, self.input_size, self.resize)

    def frame_focal(self, focal: float, frame_size: tuple[int, int]) -> float:
        """A focal length [pixels of the network's input] in pixels of a frame of `frame_size` (H, W)."""
        return frame_focal(focal, frame_size, self.input_size, self.resize)

    def inputs(self, graph: Graph) -> dict[str, TensorSpec]:
        """The inputs of a graph by name."""
        if graph == "model":
            spec = TensorSpec("image", "float32", ("batch", 3, *self.input_size), "1", (None, None),
                              "RGB in [0, 1], minus mean, divided by std, channels first.")
        else:
            spec = TensorSpec("frame", "uint8", ("batch", "height", "width", 3), "1", (0, 255),
                              "RGB pixels, channels last, of any size; all frames of a batch share one size.")
        return {spec.name: spec}

    def outputs(self, graph: Graph) -> dict[str, TensorSpec]:
        """The outputs of a graph by name, for this contract's heads."""
        h, w = self.input_size
        unit, bounds, meaning = ("m", (0, None), "z-depth.")
        if self.depth == "relative":
            unit, bounds, meaning = "1", (None, None), "Relative depth, larger is farther."
        if graph == "model":
            specs = (
                TensorSpec("depth", "float32", ("batch", 1, h, w), unit, bounds, meaning),
                TensorSpec("normals", "float32", ("batch", 3, h, w), "1", (-1, 1),
                           "Camera-space normals, x right, y up, z towards the viewer; not yet of unit length."),
                TensorSpec("alpha_logits", "float32", ("batch", 1, h, w), "1", (None, None),
                           "Foreground logits; the sigmoid is coverage."),
            )
        else:
            specs = (
                TensorSpec("depth", "float32", ("batch", "height", "width"), unit, bounds, meaning),
                TensorSpec("normals", "float32", ("batch", "height", "width", 3), "1", (-1, 1),
                           "Unit camera-space normals, x right, y up, z towards the viewer."),
                TensorSpec("alpha", "float32", ("batch", "height", "width"), "1", (0, 1), "Foreground coverage."),
            )
        return {spec.name: spec for head, spec in zip(HEADS, specs, strict=True) if head in self.heads}

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, including the tensors of both graphs for readers in other languages."""
        tensors = {
            graph: {
                "inputs": [dataclasses.asdict(spec) for spec in self.inputs(graph).values()],
                "outputs": [dataclasses.asdict(spec) for spec in self.outputs(graph).values()],
            }
            for graph in ("model", "frame")
        }
        fields = dataclasses.asdict(self) | {
            "color": "rgb",
            "filter": "triangle, antialiased, align_corners=False",
            "letterbox_fill": "edge",
            "depth": DEPTHS[self.depth],
            "normals": "camera space, x right, y up, z towards the viewer",
            "graphs": tensors,
        }
        return json.loads(json.dumps(fields))  # tuples become lists, as in a file

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Contract:
        """The inverse of `to_json`. Raises `BadInput` for a missing or malformed field."""
        try:
            size = _numbers(value["input_size"], 2, MAX_INPUT_SIZE)
            if not all(isinstance(number, int) and number >= 1 for number in size):
                raise ValueError(f"input_size {size}")
            mean, std = (tuple(map(float, _numbers(value[key], 3, MAX_NUMBER))) for key in ("mean", "std"))
            heads = value["heads"]
            if not isinstance(heads, list | tuple) or not all(isinstance(head, str) for head in heads):
                raise ValueError(f"heads {heads!r:.100}")
            kinds = {words: kind for kind, words in DEPTHS.items()}
            depth = kinds.get(value.get("depth", DEPTHS["metric"]))
            if depth is None:
                raise ValueError(f"depth {value['depth']!r:.100}")
            return cls(size, mean, std, value["resize"], tuple(heads), depth)
        except (KeyError, TypeError, ValueError, ArithmeticError) as error:
            raise BadInput(f"contract: expected the fields {[f.name for f in dataclasses.fields(cls)]}, "
                           f"but {type(error).__name__}: {error}. Export the bundle again.") from error


def _numbers(value: Any, count: int, limit: float) -> tuple[float, ...]:
    """`value` as a tuple of `count` numbers, none of which exceeds `limit`. Raises `ValueError` otherwise."""
    if not isinstance(value, list | tuple) or len(value) != count or not all(
        isinstance(number, int | float) and not isinstance(number, bool) and abs(number) <= limit for number in value
    ):
        raise ValueError(f"expected {count} numbers up to {limit:g}, received {value!r:.100}")
    return tuple(value)
