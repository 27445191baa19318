"""What a runtime gives for one image: its maps, and what can be made of them."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..core.contract import DEPTHS, HEADS, MEANINGS, DepthKind, depth_meaning
from ..core.errors import BadInput, first_line
from ..core.image_files import MAX_PIXELS, image_from_bytes
from ..geometry import Cut, Mesh, PointCloud, find_intrinsics, point_cloud, triangulate
from .image import as_frame


@dataclass(frozen=True, eq=False)
class Prediction:
    """The maps of one image at its own size. A map is None if the bundle lacks the head."""

    depth: np.ndarray | None = None
    """float32 (H, W), z-depth [m]. Without unit if `depth_kind` is relative, and for another focal length if
    `canonical_focal` is not 0."""
    normals: np.ndarray | None = None
    """float32 (H, W, 3), unit vectors in camera space: x right, y up, z towards the viewer."""
    alpha: np.ndarray | None = None
    """float32 (H, W), foreground coverage in [0, 1]."""
    canonical_focal: float = 0.0
    """0: depth is in metres. Otherwise the focal length [pixels of this image] for which it is, because the network was
    trained with `--canonical-focal`; `in_metres` rescales it for others."""
    depth_kind: DepthKind = "metric"
    """What depth is, as the bundle's contract says: metric, or relative, without unit."""

    @property
    def maps(self) -> dict[str, np.ndarray]:
        """The maps that are not None, by head."""
        found = {head: getattr(self, head) for head in HEADS}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def depth_meaning(self) -> str:
        """What the numbers of depth are, in words, for the headers of files."""
        return depth_meaning(self.depth_kind, self.canonical_focal)

    @property
    def meanings(self) -> dict[str, str]:
        """What the numbers of each map are, in words, by head."""
        return {head: self.depth_meaning if head == "depth" else MEANINGS[head] for head in self.maps}

    @property
    def depth_in_metres(self) -> bool:
        """Whether the numbers of depth are metres: neither relative nor for a canonical focal length."""
        return self.depth_kind == "metric" and not self.canonical_focal

    def in_metres(self, intrinsics: Any = None, image: Any = None) -> Prediction:
        """The same maps with depth in metres for a camera; itself unless the network has a canonical focal length.

        The arguments are those of `points`.

        Raises:
            BadInput: Depth is relative, or the intrinsics do not fit it.
        """
        self._check_metric("metres")
        if not self.canonical_focal or self.depth is None:
            return self
        camera = find_intrinsics(intrinsics, self.depth.shape, image)
        depth = self.depth * np.float32(camera.fx / self.canonical_focal)
        return dataclasses.replace(self, depth=depth, canonical_focal=0.0)

    def points(self, intrinsics: Any = None, image: Any = None, cut: Cut | None = None) -> PointCloud:
        """The points that the pixels of the foreground show: vertices [m], normals and colours.

        Points at edges are left out: where depth jumps, and where the normals contradict the depth. Without the head
        normals, normals are those of the depth's surface; without the head alpha, every pixel gives a point.

        Args:
            intrinsics: A `dpt_deploy.geometry.Intrinsics`, a 3x3 matrix, a focal length [pixels], or the path of a text
                file with a matrix. None takes the 35 mm equivalent in the EXIF of `image`, or, without one, guesses a
                normal lens. `PointCloud.intrinsics.guessed` says whether it is a guess.
            image: The image that was predicted, for colours and EXIF: a path, a file that is open in binary mode, a PIL
                image, or uint8 (H, W, 3) RGB, which has no EXIF.
            cut: What is left out.

        Raises:
            BadInput: There is no depth, it is relative, or the intrinsics or the image do not fit it.
        """
        if self.depth is None:
            raise BadInput("points: expected a bundle with the head depth, received one without. "
                           "Export it again with depth.")
        self._check_metric("points")
        image = _in_memory(image)
        camera = find_intrinsics(intrinsics, self.depth.shape, image)
        depth = self.in_metres(camera).depth
        return point_cloud(depth, camera, _pixels(image), self.normals, self.alpha, cut)

    def mesh(self, intrinsics: Any = None, image: Any = None, cut: Cut | None = None) -> Mesh:
        """The points of neighbouring pixels joined to triangles. Arguments and errors are those of `points`."""
        return triangulate(self.points(intrinsics, image, cut), cut)

    def _check_metric(self, what: str) -> None:
        if self.depth is not None and self.depth_kind != "metric":
            raise BadInput(f"{what}: expected {DEPTHS['metric']}, received {DEPTHS[self.depth_kind]}. Load a bundle "
                           "with metric depth or, if you know scale and shift, pass "
                           "dataclasses.replace(prediction, depth=metres, depth_kind='metric').")


def _pixels(image: Any) -> np.ndarray | None:
    if image is None:
        return None
    if isinstance(image, io.BytesIO):
        return image_from_bytes(image.getvalue(), "image")
    return as_frame(image, "image", MAX_PIXELS)


def _in_memory(image: Any) -> Any:
    """The content of an open file, because EXIF and pixels are both read from it; anything else as it is."""
    if not hasattr(image, "read") or isinstance(image, io.BytesIO):
        return image
    try:
        data = image.read()
    except (OSError, ValueError) as error:  # ValueError: closed, or text in another encoding
        raise BadInput(f"image: expected an open image file, but it cannot be read ({first_line(error)}).") from error
    if not isinstance(data, bytes):
        raise BadInput("image: expected a file that is open in binary mode, received one in text mode. Open it with "
                       "open(path, 'rb').")
    return io.BytesIO(data)
