"""PLY and glTF files, read back by trimesh and, for PLY, by their header."""

from __future__ import annotations

import builtins
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dpt_deploy.core.errors import BadInput, MissingPackage
from dpt_deploy.geometry import Intrinsics, Mesh, PointCloud, point_cloud, triangulate
from dpt_deploy.geometry.files import ply_bytes, write_points

SIZE = (12, 16)


def cloud(guessed: bool = True, colours: bool = True) -> PointCloud:
    depth = 2 + 0.01 * np.arange(SIZE[0])[:, None] + np.zeros(SIZE)
    image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    camera = Intrinsics.guess(SIZE) if guessed else Intrinsics.from_focal(20, SIZE)
    return point_cloud(depth, camera, image if colours else None)


@pytest.mark.parametrize("suffix", [".ply", ".glb", ".PLY"])
@pytest.mark.parametrize("kind", ["points", "mesh"])
def test_another_library_reads_what_was_written(tmp_path: Path, suffix: str, kind: str) -> None:
    trimesh = pytest.importorskip("trimesh", reason="needs the extra points")
    want = cloud() if kind == "points" else triangulate(cloud())
    write_points(tmp_path / f"a{suffix}", want)
    found = trimesh.load(tmp_path / f"a{suffix}", process=False)
    if isinstance(found, trimesh.Scene):
        assert found.metadata["focal_length_is_a_guess"] and "GUESSED" in found.metadata["comments"][1]
        (found,) = found.geometry.values()
    np.testing.assert_allclose(found.vertices, want.vertices, atol=1e-7)
    colours = found.colors if kind == "points" else found.visual.vertex_colors
    np.testing.assert_array_equal(colours[:, :3], want.colours)
    if isinstance(want, Mesh):
        np.testing.assert_array_equal(found.faces, want.faces)
        np.testing.assert_allclose(found.vertex_normals, want.normals, atol=1e-6)


def test_points_in_gltf_have_their_normals(tmp_path: Path) -> None:
    """Read by the layout of the format: trimesh reads the normals of meshes only."""
    pytest.importorskip("trimesh", reason="needs the extra points")
    want = cloud()
    write_points(tmp_path / "a.glb", want)
    data = (tmp_path / "a.glb").read_bytes()
    length = int.from_bytes(data[12:16], "little")
    tree, buffer = json.loads(data[20 : 20 + length]), data[28 + length :]
    assert len(data) == int.from_bytes(data[8:12], "little") and tree["buffers"][0]["byteLength"] == len(buffer)
    ((primitive,),) = (mesh["primitives"] for mesh in tree["meshes"])
    assert primitive["mode"] == 0
    for name, values in (("POSITION", want.vertices), ("NORMAL", want.normals)):
        accessor = tree["accessors"][primitive["attributes"][name]]
        view = tree["bufferViews"][accessor["bufferView"]]
        assert (accessor["count"], accessor["type"], accessor["componentType"]) == (len(want), "VEC3", 5126)
        assert view["byteLength"] == 12 * len(want)
        found = np.frombuffer(buffer, "<f4", 3 * len(want), view["byteOffset"]).reshape(-1, 3)
        np.testing.assert_allclose(found, values, atol=1e-7)


@pytest.mark.parametrize("kind", ["points", "mesh"])
def test_without_normals_a_file_has_none(tmp_path: Path, kind: str) -> None:
    trimesh = pytest.importorskip("trimesh", reason="needs the extra points")
    bare = dataclasses.replace(cloud() if kind == "points" else triangulate(cloud()), normals=None)
    write_points(tmp_path / "a.glb", bare)
    data = (tmp_path / "a.glb").read_bytes()
    tree = json.loads(data[20 : 20 + int.from_bytes(data[12:16], "little")])
    ((primitive,),) = (mesh["primitives"] for mesh in tree["meshes"])
    assert primitive["attributes"].keys() == {"POSITION", "COLOR_0"}
    (found,) = trimesh.load(tmp_path / "a.glb", process=False).geometry.values()
    np.testing.assert_allclose(found.vertices, bare.vertices, atol=1e-7)
    assert b"property float nx" not in ply_bytes(bare)


def test_the_header_of_ply_says_units_and_whether_the_focal_length_is_a_guess() -> None:
    for guessed in (True, False):
        header = ply_bytes(cloud(guessed)).split(b"end_header")[0].decode()
        assert "comment metres; x right, y up, z towards the viewer" in header
        assert ("GUESSED" in header) is guessed
        assert f"element vertex {SIZE[0] * SIZE[1]}\n" in header


def test_the_numbers_of_ply_are_those_of_the_points() -> None:
    want = cloud(colours=False)
    data = ply_bytes(want).split(b"end_header\n")[1]
    np.testing.assert_array_equal(np.frombuffer(data, "<f4").reshape(-1, 6), np.hstack([want.vertices, want.normals]))


def test_another_suffix_and_no_points_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.ply or \.glb"):
        write_points(tmp_path / "a.obj", cloud())
    with pytest.raises(BadInput, match="no point is left"):
        write_points(tmp_path / "a.ply", point_cloud(np.zeros(SIZE), Intrinsics.guess(SIZE)))
    assert not list(tmp_path.iterdir())


def test_without_trimesh_glb_names_the_extra_and_ply_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: object, **more: object) -> object:
        if name == "trimesh":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    write_points(tmp_path / "a.ply", cloud())
    with pytest.raises(MissingPackage, match="pip install"):
        write_points(tmp_path / "a.glb", cloud())
