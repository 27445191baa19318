"""Generated data are what they claim: analytic geometry, SynthHuman's files, the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import OpenEXR
import pytest

from dpt_deploy.core.errors import BadInput
from train.data.conventions import normals_from_depth
from train.data.synthetic.body import SKIN, Body
from train.data.synthetic.render import Camera, render
from train.data.synthetic.scene import file_index, generate, kind_of
from train.data.synthhuman import kind_of_index, read_files
from train.synthetic import SyntheticConfig, write_dataset


def ball(centre: tuple[float, float, float], radius: float) -> Body:
    return Body(np.array([centre]), np.eye(3)[None], np.full((1, 3), radius), np.array([SKIN]), np.zeros(3))


def test_a_ball_has_the_depth_normals_and_area_of_a_ball():
    surface = render(ball((0.0, 0.0, -2.0), 0.5), Camera(focal=200, height=201, width=201))
    assert surface.depth[100, 100] == pytest.approx(1.5)
    np.testing.assert_allclose(surface.normals[100, 100], (0, 0, 1), atol=1e-6)
    # The silhouette is a circle of radius f tan(asin(r / d)) [pixels].
    radius = 200 * np.tan(np.arcsin(0.25))
    assert surface.alpha.sum() == pytest.approx(np.pi * radius**2, rel=2e-4)
    assert ((surface.alpha > 0.02) & (surface.alpha < 0.98)).sum() > 200, "the edge is antialiased"
    assert np.isfinite(surface.depth).sum() == pytest.approx(np.pi * radius**2, rel=0.01)


def test_axes_point_right_up_and_to_the_viewer():
    surface = render(ball((0.0, 0.0, -2.0), 0.5), Camera(focal=200, height=200, width=200))
    assert surface.normals[100, 140, 0] > 0.5, "x grows to the right of the image"
    assert surface.normals[60, 100, 1] > 0.5, "y grows upwards"
    assert surface.normals[surface.alpha > 0.99][:, 2].min() > -0.3, "what is seen faces the viewer"


def test_the_nearer_of_two_balls_hides_the_other():
    near, far = ball((0.0, 0.0, -2.0), 0.5), ball((0.3, 0.0, -4.0), 1.0)
    both = Body(*(np.concatenate((getattr(far, name), getattr(near, name)))
                  for name in ("centres", "axes", "radii", "materials")), head=np.zeros(3))
    depth = render(both, Camera(100, 100, 100)).depth
    assert depth[50, 50] == pytest.approx(1.5, abs=1e-3)
    assert depth[50, 80] > 2.5


@pytest.mark.parametrize("number", range(6))
def test_normals_follow_from_depth_and_intrinsics(number: int):
    scene = generate(11, number, 160, 224)
    depth = np.where(np.isfinite(scene.depth), scene.depth, 0)
    normals, holds = normals_from_depth(depth, scene.intrinsics, reach=1)  # a wider reach spans joints of limbs
    cosine = np.clip((normals * scene.normals).sum(axis=2)[holds], -1, 1)
    assert holds.sum() > 300
    assert np.degrees(np.median(np.arccos(cosine))) < 1.5


def test_a_sample_depends_on_seed_and_number_alone():
    a, b = generate(7, 5, 48, 48), generate(7, 5, 48, 48)
    np.testing.assert_array_equal(a.rgb, b.rgb)
    np.testing.assert_array_equal(a.depth, b.depth)
    assert not np.array_equal(a.rgb, generate(8, 5, 48, 48).rgb)
    assert not np.array_equal(a.rgb, generate(7, 8, 48, 48).rgb)


def test_files_are_those_of_synthhuman(data: Path):
    index = file_index(4)  # the second full body
    folder, stem = data / f"SynthHuman_{index // 5000:04d}", f"{index:07d}"
    assert kind_of(4) == kind_of_index(index) == "full_body"
    scene = generate(3, 4, 64, 64)
    with OpenEXR.File(str(folder / f"depth_{stem}.exr"), separate_channels=True) as file:
        (centimetres,) = (channel.pixels for channel in file.channels().values())
    none = ~np.isfinite(scene.depth)
    assert (centimetres[none] == 65504).all()
    np.testing.assert_allclose(centimetres[~none], scene.depth[~none] * 100, rtol=1e-5)
    with OpenEXR.File(str(folder / f"normal_{stem}.exr"), separate_channels=True) as file:
        stored = {name: channel.pixels for name, channel in file.channels().items()}
    np.testing.assert_allclose(np.stack([stored[c] for c in "BGR"], axis=-1), scene.normals, atol=1e-3)
    sample = read_files(folder, stem)
    np.testing.assert_array_equal(sample.rgb, scene.rgb)
    np.testing.assert_allclose(sample.depth[~none], scene.depth[~none], rtol=1e-5)
    assert (sample.depth[none] == 0).all()
    np.testing.assert_allclose(sample.alpha, scene.alpha, atol=0.51 / 255)
    np.testing.assert_allclose(sample.intrinsics, scene.intrinsics, atol=1e-5)


def test_several_processes_write_the_same_files(data: Path, tmp_path: Path):
    write_dataset(SyntheticConfig(tmp_path, count=12, image_size=(64, 64), seed=3, workers=2))
    for path in tmp_path.rglob("rgb_*.png"):
        assert path.read_bytes() == (data / path.relative_to(tmp_path)).read_bytes()


def test_impossible_options_are_refused(tmp_path: Path):
    with pytest.raises(BadInput, match="count"):
        SyntheticConfig(tmp_path, count=0)
    with pytest.raises(BadInput, match="at least 16"):
        SyntheticConfig(tmp_path, image_size=(4, 4))
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "x", tmp_path / "file"):
        for prepared in (False, True):
            with pytest.raises(BadInput, match=r"cannot write.*file is a file.*Choose another output folder"):
                write_dataset(SyntheticConfig(out, count=1, image_size=(16, 16), workers=1, prepared=prepared))
