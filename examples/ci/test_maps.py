"""Tests of one's own, beside the parity tests that the plugin adds.

    pytest examples/ci --dpt-bundle engines/best_model
"""

import numpy as np

import dpt_deploy


def test_maps_have_the_size_of_the_image(runtime: dpt_deploy.Runtime) -> None:
    image = np.full((120, 90, 3), 128, np.uint8)
    prediction = runtime(image)
    assert prediction.depth.shape == prediction.alpha.shape == (120, 90)
    assert prediction.normals.shape == (120, 90, 3)


def test_maps_are_within_their_ranges(runtime: dpt_deploy.Runtime) -> None:
    prediction = runtime(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    assert (prediction.depth > 0).all()
    assert (prediction.alpha >= 0).all() and (prediction.alpha <= 1).all()
    assert np.allclose(np.linalg.norm(prediction.normals, axis=-1), 1, atol=1e-4)
