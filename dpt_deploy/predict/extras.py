"""Files that other programs take, besides the maps: points, meshes, cut-outs, composites, and 16-bit maps."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro

from ..core.compact import encode
from ..core.contract import DEPTHS, DepthKind
from ..core.errors import BadInput
from ..core.storage import Item
from ..geometry import Cut, Intrinsics, find_intrinsics
from ..geometry.files import SUFFIXES, trimesh, write_points
from ..report.cutout import Background, composite, cutout
from ..report.writers import write_depth_png, write_normals, write_picture, write_png
from ..runtime import Prediction
from .formats import FOCAL_ADVICE


@dataclass(frozen=True)
class Extras:
    """What to write for each image besides its maps."""

    points: Annotated[str | None, tyro.conf.arg(metavar="ply|glb|FILE")] = None
    """Points with normals and colours: ply or glb for a file beside the maps of each image, or, for one image, the name
    of a file that ends in .ply or .glb. glb needs the extra points."""
    mesh: bool = False
    """With --points: also join the points to triangles."""
    intrinsics: Path | None = None
    """For points: text file with the 3x3 matrix of the camera [pixels]. Default: the focal length in each image's EXIF;
    without one, a guess."""
    focal: float | None = None
    """For points: focal length [pixels]."""
    fov: float | None = None
    """For points: horizontal field of view [degrees]."""
    point_alpha: float = Cut.threshold
    """For points: the least alpha of a pixel that gives a point."""
    max_slope: float = Cut.max_slope
    """For points: largest angle between surface and image plane [degrees]; steeper steps are edges. 90 keeps all."""
    max_angle: float = Cut.max_angle
    """For points: largest angle between predicted normal and the depth's surface [degrees]. 180 keeps all."""
    point_step: int = Cut.step
    """For points: keep every n-th row and column."""
    cutout: Literal["png", "webp"] | None = None
    """The foreground with transparency, as RGBA."""
    background: str | None = None
    """The foreground over another background (PNG): blur, a colour such as white, #00b140 or 0,177,64, or an image
    file."""
    keep_colours: bool = False
    """With --cutout and --background: leave the old background's colour in the pixels at the edge."""
    alpha_png: bool = False
    """Alpha as 8-bit gray PNG."""
    depth_png: bool = False
    """Depth in millimetres as 16-bit gray PNG."""
    normals: Literal["opengl", "directx", "camera"] | None = None
    """Normals as 16-bit PNG and as OpenEXR, in the convention of OpenGL (y up), DirectX (y down) or OpenCV's camera (y
    down, z away from the viewer)."""

    def __post_init__(self) -> None:
        given = [name for name in ("intrinsics", "focal", "fov") if getattr(self, name) is not None]
        if len(given) > 1:
            raise BadInput(f"expected one of --intrinsics, --focal and --fov, received {' and '.join(given)}.")
        if self.points is not None and f".{self.points}" not in SUFFIXES and \
                Path(self.points).suffix.lower() not in SUFFIXES:
            raise BadInput(f"--points: expected ply, glb or a file name that ends in {' or '.join(SUFFIXES)}, received "
                           f"{self.points!r}.")
        if self.mesh and self.points is None:
            raise BadInput("--mesh: expected --points as well. Pass for example --points glb.")
        size = (2, 2)  # values of any image, to fail before a backend is loaded
        for value, make in ((self.focal, Intrinsics.from_focal), (self.fov, Intrinsics.from_fov)):
            if value is not None:
                make(value, size)
        _ = self.cut
        if self.background is not None:
            Background.parse(self.background)
        if self.points is not None and self.points.lower().endswith("glb"):
            trimesh()

    @property
    def cut(self) -> Cut:
        """Which pixels give a point."""
        return Cut(self.point_alpha, self.max_slope, self.max_angle, self.point_step)

    @property
    def own_file(self) -> Path | None:
        """The file that --points names, None if it names a format."""
        return None if self.points is None or f".{self.points}" in SUFFIXES else Path(self.points)

    def asked(self) -> list[str]:
        """The options that write a file."""
        names = ("points", "cutout", "background", "alpha_png", "depth_png", "normals")
        return ["--" + name.replace("_", "-") for name in names if getattr(self, name)]

    def check_sources(self, images: int, videos: int) -> None:
        """Raise `BadInput` unless so many sources can give the files."""
        if videos and (asked := self.asked()):
            raise BadInput(f"{asked[0]}: expected images, received a video or a camera. Save its frames as images.")
        if images > 1 and self.own_file is not None:
            kind = self.own_file.suffix.lower().lstrip(".")
            raise BadInput(f"--points {self.own_file}: expected one image, received {images}. Pass --points {kind}.")

    def check_heads(self, heads: Iterable[str]) -> None:
        """Raise `BadInput` unless a bundle with these heads can give the files."""
        needs = {"points": "depth", "depth_png": "depth", "normals": "normals", "cutout": "alpha",
                 "background": "alpha", "alpha_png": "alpha"}
        for option, head in needs.items():
            if getattr(self, option) and head not in heads:
                raise BadInput(f"--{option.replace('_', '-')}: expected a bundle with the head {head}, received one "
                               f"without. It has {', '.join(heads)}.")

    def check_depth(self, kind: DepthKind) -> None:
        """Raise `BadInput` if a file needs metres and the bundle's depth has no unit."""
        given = [option for option in ("points", "depth_png") if getattr(self, option)]
        if given and kind != "metric":
            raise BadInput(f"--{given[0].replace('_', '-')}: expected a bundle with depth in metres, received one with "
                           f"{DEPTHS[kind]}. Omit the option; the maps hold the depth as it is.")

    def camera(self, size: tuple[int, int], item: Item | None) -> Intrinsics:
        """The intrinsics of an image of `size` (H, W): those of the options, of EXIF, or a guess."""
        if self.fov is not None:
            return Intrinsics.from_fov(self.fov, size)
        given = self.intrinsics if self.intrinsics is not None else self.focal
        if given is not None or item is None or item.path is not None:
            return find_intrinsics(given, size, item and item.path)
        with item.open() as file:  # a member of a tar, or behind an address
            return find_intrinsics(None, size, file)


class ExtraWriter:
    """Writes the extra files of images, and remembers what is to be said about them at the end."""

    def __init__(self, extras: Extras) -> None:
        self.extras = extras
        self.guessed: list[str] = []  # threads append to lists, and would lose counts
        """Images whose focal length was guessed."""
        self.unscaled: list[str] = []
        """Images whose depth maps are not in metres, because nothing tells the focal length."""
        self.empty: list[str] = []
        """Images of which no point is left."""
        self._background = Background.parse(extras.background) if extras.background is not None else None

    @property
    def identity(self) -> dict[str, Any] | None:
        """What the files and depth in metres depend on, as plain JSON; None if no option asks for either."""
        extras = self.extras
        if not extras.asked() and (extras.intrinsics, extras.focal, extras.fov) == (None, None, None):
            return None
        return {name: str(value) for name, value in dataclasses.asdict(extras).items() if value is not None}

    def metric(self, prediction: Prediction, item: Item | None) -> Prediction:
        """The prediction with depth in metres, if the network needs the focal length for that and it is known.

        Raises `BadInput` if the intrinsics of the options do not fit the image, or if a file needs metres and nothing
        tells the focal length.
        """
        if prediction.depth is None or not (prediction.canonical_focal or self.extras.points):
            return prediction
        camera = self.extras.camera(prediction.depth.shape, item)
        if not prediction.canonical_focal:
            return prediction
        if camera.guessed:
            if self.extras.depth_png:
                raise BadInput(f"--depth-png: expected depth in metres, received {prediction.depth_meaning}. "
                               f"{FOCAL_ADVICE}, or omit the option.")
            self.unscaled.append(item.key if item else "")
            return prediction
        return prediction.in_metres(camera)

    def write(
        self, folder: Path, stem: str, image: np.ndarray, prediction: Prediction, item: Item | None
    ) -> list[Path]:
        """Write the files of one image, and return them. Raises `BadInput` if one cannot be written.

        Args:
            folder: Where they go.
            stem: How their names begin.
            image: uint8 (H, W, 3) RGB.
            prediction: Its maps.
            item: The input, for its EXIF.
        """
        extras, files = self.extras, []
        if extras.points is not None:
            camera = extras.camera(image.shape[:2], item)
            kind = "mesh" if extras.mesh else "points"
            files.append(extras.own_file or folder / f"{stem}.{kind}.{extras.points}")
            make = prediction.mesh if extras.mesh else prediction.points
            points = make(camera, image, extras.cut)
            if len(points):
                write_points(files[-1], points)
                self.guessed += [stem] if camera.guessed else []
            else:
                files.pop()
                self.empty.append(stem)
        if extras.cutout is not None:
            files.append(folder / f"{stem}.cutout.{extras.cutout}")
            write_picture(files[-1], cutout(image, prediction.alpha, not extras.keep_colours))
        if self._background is not None:
            files.append(folder / f"{stem}.composite.png")
            write_png(files[-1], composite(image, prediction.alpha, self._background, not extras.keep_colours))
        if extras.alpha_png:
            files.append(folder / f"{stem}.alpha.png")
            write_png(files[-1], encode("alpha", "uint8", prediction.alpha))
        if extras.depth_png:
            files.append(folder / f"{stem}.depth.png")
            write_depth_png(files[-1], prediction.depth)
        for suffix in (".png", ".exr") if extras.normals is not None else ():
            files.append(folder / f"{stem}.normals{suffix}")
            write_normals(files[-1], prediction.normals, extras.normals)
        return files

    def lines(self) -> list[str]:
        """What to say at the end: guesses, and depth that is not in metres."""
        found = []
        advice = "Pass --focal, --fov or --intrinsics if you know it."
        if self.guessed:
            found.append(f"points: the focal length was guessed for {_images(len(self.guessed))}, so shapes may be "
                         f"stretched. {advice}")
        if self.unscaled:
            found.append(f"depth: the network needs the focal length for metres, and {_images(len(self.unscaled))} did "
                         f"not tell it; their depth maps are as the network gave them, and say so. {advice}")
        if self.empty:
            found.append(f"points: none is left of {_images(len(self.empty))} ({', '.join(self.empty[:5])}). Lower "
                         "--point-alpha, or raise --max-slope and --max-angle.")
        return found


def _images(count: int) -> str:
    return "1 image" if count == 1 else f"{count} images"
