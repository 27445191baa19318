"""Generated people are what they claim: the mesh renderer agrees with analytic geometry."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from demo.people.__main__ import PeopleConfig
from demo.people.body import Bodies, Person, affine, icosphere, joined, random_pose
from demo.people.paint import background, direction, shadowed
from demo.people.raster import rasterize, vertex_normals
from demo.people.scene import averaged, generate, normals_of
from demo.people.wardrobe import HEAD, SKIN, STRANDS, TOP, TORSO, cloth, covered, hairline, random_look
from dpt_deploy.core.errors import BadInput
from train.data.conventions import normals_from_depth
from train.data.synthetic.body import SKIN as BALL_SKIN
from train.data.synthetic.body import Body
from train.data.synthetic.render import Camera, render


def balls(*places: tuple[tuple[float, float, float], float], group: int = TORSO) -> Person:
    """Balls of triangles: centre and radius of each [m]."""
    ball, faces = icosphere(5)
    meshes = [(np.array(centre) + radius * ball, faces, np.array(centre) + radius * ball, np.full(len(faces), group))
              for centre, radius in places]
    return joined(meshes, np.array(places[0][0], float))


class Balls:
    """A body model whose people are a head on a torso, both balls."""

    def person(self, look, rng) -> Person:
        return balls(((0.0, 0.0, 0.0), 0.25), ((0.0, 0.36, 0.0), 0.14))


def test_a_ball_of_triangles_is_rendered_as_the_analytic_ball():
    camera = Camera(focal=150, height=120, width=160)
    person = balls(((0.1, -0.05, -2.0), 0.5))
    body = Body(np.array([[0.1, -0.05, -2.0]]), np.eye(3)[None], np.full((1, 3), 0.5), np.array([BALL_SKIN]),
                np.zeros(3))
    truth, hits = render(body, camera), rasterize(person.vertices, person.faces, camera)
    depth = np.full(120 * 160, np.inf)
    depth[hits.pixels] = hits.depth
    depth = depth.reshape(120, 160)
    both = np.isfinite(depth) & (truth.alpha == 1)
    assert (np.isfinite(depth) != np.isfinite(truth.depth)).sum() < 20, "all but a few pixels of the rim"
    np.testing.assert_allclose(depth[both], truth.depth[both], atol=5e-3)
    normals = normals_of(person, vertex_normals(person.vertices, person.faces), hits)
    inner = both.reshape(-1)[hits.pixels]
    cosine = (normals * truth.normals.reshape(-1, 3)[hits.pixels]).sum(axis=1)[inner]
    assert np.degrees(np.arccos(np.clip(cosine, -1, 1))).max() < 2.5


def test_weights_are_those_of_the_point_that_the_ray_meets():
    rng = np.random.default_rng(0)
    corners = np.array(((-1.0, -1, -2), (1.2, -0.8, -5), (0.1, 1.1, -3)))
    vertices = np.concatenate([corners + rng.normal(0, 0.05, (3, 3)) - (0, 0, step) for step in range(3)])
    camera = Camera(focal=60, height=64, width=64)
    hits = rasterize(vertices, np.arange(9).reshape(3, 3), camera)
    points = np.einsum("mk,mkc->mc", hits.weights, vertices[np.arange(9).reshape(3, 3)[hits.faces]])
    x, y = camera.rays()
    rows, columns = np.divmod(hits.pixels, 64)
    rays = np.stack((x[columns], y[rows, 0], np.full(len(rows), -1.0)), axis=1)
    assert len(rows) > 300
    np.testing.assert_allclose(points, hits.depth[:, None] * rays, atol=1e-9)


def test_the_nearer_mesh_hides_the_other_and_back_faces_are_not_seen():
    person = balls(((0.3, 0.0, -4.0), 1.0), ((0.0, 0.0, -2.0), 0.5))
    camera = Camera(100, 100, 100)
    hits = rasterize(person.vertices, person.faces, camera)
    depth = np.full(10000, np.inf)
    depth[hits.pixels] = hits.depth
    assert depth[50 * 100 + 50] == pytest.approx(1.5, abs=5e-3)
    assert depth[50 * 100 + 80] > 2.5
    inside_out = rasterize(person.vertices, person.faces[:, ::-1], camera)
    assert inside_out.depth[inside_out.pixels == 50 * 100 + 50] == pytest.approx(2.5, abs=5e-3), "the far wall"


def test_what_is_near_the_camera_or_behind_it_is_left_out():
    person = balls(((0.0, 0.0, 1.0), 0.5), ((0.0, 0.0, 0.0), 0.05))
    assert not len(rasterize(person.vertices, person.faces, Camera(50, 64, 64)).pixels)


def test_a_ball_before_the_lamp_casts_a_shadow():
    lamp = direction(0, 60)
    below = np.array((0.0, 0.35, -2.65))  # on the large ball
    person = balls(((0.0, 0.0, -3.0), 0.5), (tuple(below + 0.9 * lamp), 0.2))
    camera = Camera(100, 100, 100)
    hits = rasterize(person.vertices, person.faces, camera)
    dark = shadowed(person, hits, camera, lamp)
    row, column = np.divmod(hits.pixels, 100)
    centre = 50 - 100 * below[1] / -below[2]
    near = np.hypot(row + 0.5 - centre, column + 0.5 - 50) < 3
    assert near.sum() > 20 and dark[near].min() == 1
    side = (np.abs(column - 50) > 10) & (row > 40) & (row < 50)
    assert side.sum() > 50 and dark[side].mean() < 0.05


@pytest.mark.parametrize("number", range(6))
def test_normals_follow_from_depth_and_alpha_covers_what_has_depth(number: int):
    scene = generate(Balls(), 3, number, 160, 160)
    known = np.isfinite(scene.depth)
    normals, holds = normals_from_depth(np.where(known, scene.depth, 0), scene.intrinsics, reach=1)
    cosine = np.clip((normals * scene.normals).sum(axis=2)[holds], -1, 1)
    assert holds.sum() > 300
    assert np.degrees(np.median(np.arccos(cosine))) < 2.5
    assert scene.alpha.min() >= 0 and scene.alpha.max() == 1
    assert (scene.alpha[known] > 0).mean() > 0.99 and (scene.alpha[~known] < 1).mean() > 0.99
    np.testing.assert_allclose(np.linalg.norm(scene.normals[known], axis=1), 1, atol=1e-5)
    assert (scene.normals[~known] == 0).all()


def test_a_sample_depends_on_seed_and_number_alone():
    a, b, c = generate(Balls(), 7, 5, 48, 48), generate(Balls(), 7, 5, 48, 48), generate(Balls(), 8, 5, 48, 48)
    np.testing.assert_array_equal(a.rgb, b.rgb)
    np.testing.assert_array_equal(a.depth, b.depth)
    assert not np.array_equal(a.rgb, c.rgb)


def test_garments_cover_what_they_should():
    look = random_look(np.random.default_rng(1))
    points = np.array(((0.0, -0.1, 0.3), (0.0, -0.12, 0.60), (0.0, 0.0, 0.76)))
    groups = np.array((TORSO, HEAD, HEAD))
    kinds = cloth(points, groups, look)
    assert kinds[0] == TOP and kinds[1] == SKIN
    assert (kinds[2] == STRANDS) == (look.hair > 0 and not look.hat)
    under, height = covered(points, groups, look)
    assert under.tolist() == [True, False, False] and height[0] == look.thickness[0] and height[1] == 0
    assert hairline(points, look)[2] > 0 > hairline(points, look)[1]


def test_the_arms_of_a_pose_mirror_each_other_half_of_the_time():
    alike = []
    for seed in range(40):
        pose = random_pose(np.random.default_rng(seed))
        left, right = pose["upperarm01.L"], pose["upperarm01.R"]
        alike.append(np.allclose(left * (1, -1, -1), right))
    assert 8 < sum(alike) < 32


def test_an_affine_map_is_found_again():
    rng = np.random.default_rng(0)
    points, matrix = rng.normal(size=(50, 3)), rng.normal(size=(4, 3))
    np.testing.assert_allclose(affine(points, np.c_[points, np.ones(50)] @ matrix), matrix, atol=1e-9)


def test_backgrounds_and_averages_have_their_range():
    for seed in range(12):
        image = background(40, 56, np.random.default_rng(seed))
        assert image.shape == (40, 56, 3) and image.dtype == np.float32
        assert image.min() >= 0 and image.max() <= 1
    np.testing.assert_array_equal(averaged(np.arange(16.0).reshape(4, 4, 1))[..., 0], [[2.5, 4.5], [10.5, 12.5]])


def test_impossible_options_are_refused(tmp_path: Path):
    for options, message in (({"count": 0}, "count"), ({"image_size": (4, 4)}, "at least 16"),
                             ({"ellipsoids": -1}, "ellipsoids")):
        with pytest.raises(BadInput, match=message):
            PeopleConfig(tmp_path, **options)


@pytest.mark.skipif(importlib.util.find_spec("anny") is not None, reason="the package anny is installed")
def test_without_the_body_model_one_sentence_says_what_to_do():
    with pytest.raises(BadInput, match=r"expected the package anny.*demo/model/README.md has the command"):
        Bodies()


@pytest.mark.slow
def test_a_person_with_annys_body_has_a_consistent_geometry():
    pytest.importorskip("anny", reason="the body model anny is not installed; demo/model/README.md has the command")
    scene = generate(Bodies(), 1, 2, 256, 256)
    known = np.isfinite(scene.depth)
    normals, holds = normals_from_depth(np.where(known, scene.depth, 0), scene.intrinsics, reach=1)
    cosine = np.clip((normals * scene.normals).sum(axis=2)[holds], -1, 1)
    assert holds.sum() > 2000 and np.degrees(np.median(np.arccos(cosine))) < 8
