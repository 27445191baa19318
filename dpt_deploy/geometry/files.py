"""Point clouds and meshes as files: binary PLY, and glTF in its binary form (.glb), which trimesh writes."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ..core.errors import BadInput, missing_package
from ..core.files import cannot_write, replacing
from .mesh import Mesh
from .points import PointCloud

SUFFIXES = (".ply", ".glb")
_FLOAT = 5126  # of glTF's component types
_NAMES = {"<f4": "float", "u1": "uchar"}


def write_points(path: Path | str, cloud: PointCloud) -> None:
    """Write a point cloud or a mesh as .ply or .glb, by the suffix of the path.

    Raises:
        BadInput: The suffix is another one, there is no point, or the file cannot be written.
        MissingPackage: trimesh, which writes .glb, is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise BadInput(f"points: expected a file name that ends in {' or '.join(SUFFIXES)}, received {path}.")
    if not len(cloud):
        raise BadInput(f"{path}: no point is left of the image. Lower the threshold of alpha, or raise the largest "
                       "slope and angle.")
    data = ply_bytes(cloud) if path.suffix.lower() == ".ply" else glb_bytes(cloud)
    with replacing(path) as temporary:
        temporary.write_bytes(data)
        if temporary.read_bytes() != data:
            raise cannot_write(path, RuntimeError("what is read back is not what was written"))


def ply_bytes(cloud: PointCloud) -> bytes:
    """A binary little-endian PLY file: positions, normals and colours where there are, and the triangles of a mesh.

    Its comments say unit, axes, and where the focal length comes from.
    """
    columns = [(("x", "y", "z"), "<f4", cloud.vertices), (("nx", "ny", "nz"), "<f4", cloud.normals),
               (("red", "green", "blue"), "u1", cloud.colours)]
    columns = [column for column in columns if column[2] is not None]
    properties = [(name, kind) for names, kind, _ in columns for name in names]
    vertices = np.empty(len(cloud), properties)
    for names, _, values in columns:
        for i, name in enumerate(names):
            vertices[name] = values[:, i]
    header = ["ply", "format binary_little_endian 1.0", *(f"comment {line}" for line in cloud.comments),
              f"element vertex {len(cloud)}", *(f"property {_NAMES[kind]} {name}" for name, kind in properties)]
    body = [vertices.tobytes()]
    if isinstance(cloud, Mesh):
        faces = np.empty(len(cloud.faces), [("count", "u1"), ("corners", "<i4", 3)])
        faces["count"], faces["corners"] = 3, cloud.faces
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
        body.append(faces.tobytes())
    return "\n".join([*header, "end_header", ""]).encode("ascii", "replace") + b"".join(body)


def glb_bytes(cloud: PointCloud) -> bytes:
    """A binary glTF 2.0 file: positions, and normals and colours where there are, as in `ply_bytes`.

    Its scene's extras hold the comments and the intrinsics.

    glTF has the same axes and the same unit. Raises `MissingPackage` if trimesh is not installed.
    """
    library = trimesh()
    if isinstance(cloud, Mesh):
        thing = library.Trimesh(cloud.vertices, cloud.faces, vertex_normals=cloud.normals,
                                vertex_colors=cloud.colours, process=False, validate=False)
    else:
        thing = library.PointCloud(cloud.vertices, colors=cloud.colours)
    scene = library.Scene(thing)
    scene.metadata = {"comments": list(cloud.comments), "intrinsics": cloud.intrinsics.matrix.tolist(),
                      "focal_length_is_a_guess": cloud.intrinsics.guessed}
    if isinstance(cloud, Mesh):
        return library.exchange.gltf.export_glb(scene, include_normals=cloud.normals is not None)
    if cloud.normals is None:
        return library.exchange.gltf.export_glb(scene)
    return library.exchange.gltf.export_glb(
        scene, buffer_postprocessor=lambda buffers, tree: _add_normals(buffers, tree, cloud.normals))


def _add_normals(buffers: dict[Any, bytes], tree: dict[str, Any], normals: np.ndarray) -> None:
    """Add the normals of the points to a glTF file that trimesh is making: it writes those of meshes only."""
    view, accessor = len(buffers), len(tree["accessors"])
    buffers["normals"] = normals.astype("<f4").tobytes()  # 12 bytes each, so aligned as glTF asks
    tree["accessors"]["normals"] = {"componentType": _FLOAT, "type": "VEC3", "count": len(normals), "bufferView": view,
                                    "byteOffset": 0}
    ((primitive,),) = (mesh["primitives"] for mesh in tree["meshes"])
    primitive["attributes"]["NORMAL"] = accessor


def trimesh() -> ModuleType:
    """The library that writes .glb. Raises `MissingPackage` if it is not installed."""
    try:
        import trimesh
    except ImportError as error:
        raise missing_package("trimesh", "points", "write .glb files") from error
    return trimesh
