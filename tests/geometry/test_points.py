"""Points and normals against the analytic surface of generated bodies, in millimetres and degrees."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.geometry import Cut, Intrinsics, PointCloud, point_cloud, triangulate
from tests.geometry.bodies import angles, scene

SCENE = scene()
SURFACE = SCENE.surface
CAMERA = Intrinsics.from_matrix(SCENE.camera.intrinsics, SURFACE.depth.shape)
IMAGE = np.random.default_rng(0).integers(0, 256, (*SURFACE.depth.shape, 3), np.uint8)
ALL = Cut(max_slope=90, max_angle=180)


def cloud(cut: Cut | None = None, depth: np.ndarray = SURFACE.depth, normals: np.ndarray | None = SURFACE.normals,
          camera: Intrinsics = CAMERA) -> PointCloud:
    return point_cloud(depth.astype(np.float32), camera, IMAGE, normals, SURFACE.alpha, cut)


def blurred() -> np.ndarray:
    """Depth as a network predicts it: a step at an edge takes several pixels, and the background has depth too."""
    depth = np.where(np.isfinite(SURFACE.depth), SURFACE.depth, 4.0).astype(np.float32)
    small = cv2.resize(depth, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return cv2.resize(small, depth.shape[::-1], interpolation=cv2.INTER_LINEAR)


def test_points_and_normals_lie_on_the_surface() -> None:
    found = cloud()
    assert len(found) > 0.97 * np.isfinite(SURFACE.depth).sum()
    assert SCENE.distance(found.vertices).max() < 1e-6  # 0.001 mm
    assert angles(found.normals, SURFACE.normals.reshape(-1, 3)[found.pixels]).max() < 1e-4
    np.testing.assert_array_equal(found.colours, IMAGE.reshape(-1, 3)[found.pixels])


def test_without_predicted_normals_they_come_from_the_depth() -> None:
    found = cloud(normals=None)
    off = angles(found.normals, SURFACE.normals.reshape(-1, 3)[found.pixels])
    assert np.median(off) < 0.5 and np.percentile(off, 90) < 10
    np.testing.assert_allclose(np.linalg.norm(found.normals, axis=1), 1, atol=1e-5)


def test_a_principal_point_off_the_middle_and_other_focal_lengths_along_y() -> None:
    """The pixel (u, v) of depth z is at ((u + 0.5 - cx) z / fx, -(v + 0.5 - cy) z / fy, -z)."""
    camera = Intrinsics.from_matrix([[200, 0, 3], [0, 100, 1], [0, 0, 1]], (4, 5))
    found = point_cloud(np.full((4, 5), 2.0), camera, cut=ALL)
    np.testing.assert_allclose(found.vertices[found.pixels == 2 * 5 + 4], [[0.015, -0.03, -2]], atol=1e-7)


def test_edges_of_blurred_depth_are_cut() -> None:
    """Between two surfaces, blurred depth has points that belong to neither."""
    everything, jumps, default = (cloud(cut, blurred()) for cut in (ALL, Cut(max_angle=180), Cut()))
    far = [SCENE.distance(found.vertices) for found in (everything, jumps, default)]
    shares = [(distance > 0.02).mean() for distance in far]  # more than 20 mm from the surface
    assert shares[0] > 0.1 and shares[1] < 0.002
    assert np.percentile(far[2], 99) < 0.9 * np.percentile(far[1], 99) < 0.008
    assert len(default) > 0.75 * len(everything)


def test_a_normal_that_contradicts_the_depth_is_cut() -> None:
    wrong = SURFACE.normals.copy()
    wrong[:, :192] *= (-1, -1, 1)  # as if lit from the other side
    left = np.flatnonzero((SURFACE.normals[:, :192, 2] < 0.6) & (SURFACE.normals[:, :192, 2] > 0.2))
    assert len(left) > 100
    before, after = (set(cloud(normals=normals).pixels.tolist()) for normals in (SURFACE.normals, wrong))
    rows, columns = np.divmod(left, 192)
    pixels = set((rows * 384 + columns).tolist()) & before
    assert len(pixels & after) < 0.1 * len(pixels)


def test_alpha_cuts_and_a_step_thins() -> None:
    assert len(cloud(Cut(threshold=0.99, max_slope=90))) < len(cloud(Cut(threshold=0.01, max_slope=90)))
    thin = cloud(Cut(step=3))
    assert set(thin.pixels.tolist()) <= set(cloud().pixels.tolist())
    assert all(p // 384 % 3 == 0 and p % 384 % 3 == 0 for p in thin.pixels.tolist())


@pytest.mark.parametrize("bad", [np.nan, np.inf, -1.0, 0.0])
def test_pixels_without_depth_give_no_point(bad: float) -> None:
    depth = SURFACE.depth.astype(np.float32)
    depth[100:200] = bad
    found = cloud(depth=depth)
    assert len(found) and not ((found.pixels // 384 >= 100) & (found.pixels // 384 < 200)).any()
    assert np.isfinite(found.vertices).all()


def test_normals_that_are_not_finite_give_no_point() -> None:
    normals = SURFACE.normals.copy()
    normals[150:200] = np.nan
    assert np.isfinite(cloud(ALL, normals=normals).normals).all()


@pytest.mark.parametrize("step", [1, 2])
def test_the_mesh_faces_the_camera_and_spans_no_edge(step: int) -> None:
    cut = Cut(step=step)
    mesh = triangulate(cloud(cut), cut)
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    facing = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    assert ((facing * corners[:, 0]).sum(axis=1) < 0).all()
    assert set(mesh.faces.reshape(-1).tolist()) == set(range(len(mesh)))
    middle = corners.mean(axis=1)
    assert np.percentile(SCENE.distance(middle), 99) < 0.004
    u, v = np.diff(corners[..., :2] / -corners[..., 2:], axis=1).transpose(1, 0, 2)
    area = (u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).sum() / 2 * SCENE.camera.focal**2  # pixels
    assert 0.9 < area / np.isfinite(SURFACE.depth).sum() <= 1  # all but the edges is covered, and once


def test_three_of_four_neighbours_give_one_triangle() -> None:
    for missing in range(4):
        depth = np.ones((2, 2), np.float32)
        depth.reshape(-1)[missing] = np.inf
        mesh = triangulate(point_cloud(depth, Intrinsics.from_focal(2, (2, 2)), normals=np.ones((2, 2, 3))))
        a, b, c = mesh.vertices[mesh.faces[0]]
        assert mesh.faces.shape == (1, 3) and np.cross(b - a, c - a)[2] > 0


def test_a_mesh_of_nothing_is_empty() -> None:
    mesh = triangulate(point_cloud(np.full((4, 4), np.inf), Intrinsics.guess((4, 4))))
    assert len(mesh) == 0 and mesh.faces.shape == (0, 3)
    assert len(triangulate(point_cloud(np.ones((1, 1)), Intrinsics.guess((1, 1))))) == 0


@pytest.mark.parametrize("values", [{"threshold": 1.5}, {"max_slope": -1}, {"max_angle": 200}, {"step": 0},
                                    {"threshold": float("nan")}])
def test_a_cut_out_of_range_is_refused(values: dict) -> None:
    with pytest.raises(BadInput, match=next(iter(values))):
        Cut(**values)


def test_maps_of_another_size_are_refused() -> None:
    with pytest.raises(BadInput, match="normals: expected the shape"):
        point_cloud(np.ones((4, 4)), Intrinsics.guess((4, 4)), normals=np.ones((5, 4, 3)))
