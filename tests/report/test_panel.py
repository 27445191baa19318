"""The panel can be read at any size, and shows what the maps say."""

from __future__ import annotations

import numpy as np
import pytest

from dpt_deploy.report.colours import colour_depth
from dpt_deploy.report.panel import GAP, TITLE_HEIGHT, Tile, arrange, depth_scale, panel, text_width, tile_size
from dpt_deploy.runtime import Prediction
from tests.tiny import photo


def prediction(height: int, width: int) -> Prediction:
    """Foreground on the left half, at 1 m to 2 m from top to bottom; 9 m behind it."""
    depth = np.full((height, width), 9, np.float32)
    depth[:, : max(1, width // 2)] = np.linspace(1, 2, height)[:, None]
    normals = np.zeros((height, width, 3), np.float32)
    normals[..., 2] = 1
    return Prediction(depth, normals, (depth < 5).astype(np.float32))


@pytest.mark.parametrize("size", [(64, 64), (1080, 1920), (1920, 1080), (2160, 3840), (333, 517), (20, 2000), (900, 9)])
def test_a_panel_is_of_readable_size(size: tuple[int, int]) -> None:
    picture = panel(np.zeros((*size, 3), np.uint8), prediction(*size), "photo.png")
    assert picture.dtype == np.uint8 and picture.shape[2] == 3
    assert 300 <= picture.shape[1] <= 2400 and 300 <= picture.shape[0] <= 2400


def test_one_pixel_makes_a_panel() -> None:
    assert panel(photo(1, 1), prediction(1, 1)).size


def test_tiles_show_image_depth_normals_and_cut_out() -> None:
    image = photo(480, 480)
    row = panel(image, prediction(480, 480))[TITLE_HEIGHT : TITLE_HEIGHT + 480]
    tiles = [row[:, GAP + i * (480 + GAP) :][:, :480] for i in range(4)]
    np.testing.assert_array_equal(tiles[0], image)
    limits = (1.01, 1.99)  # the foreground's 1st to 99th percentile: what lies behind takes no colours
    want = colour_depth(np.linspace(1, 2, 480)[:, None], limits)[:, 0]
    np.testing.assert_allclose(tiles[1][:, 100].astype(int), want, atol=8)
    assert tiles[1][:, 300:].min() > 200, "depth fades where alpha says background"
    np.testing.assert_array_equal(tiles[2][200, 100], [128, 128, 255])
    np.testing.assert_array_equal(tiles[3][:, :200], image[:, :200])
    assert len(np.unique(tiles[3][:, 300:])) == 2, "a checkerboard"


def test_heads_that_are_absent_take_no_space() -> None:
    image, full = photo(100, 100), prediction(100, 100)
    widths = [
        panel(image, Prediction(**dict(list(full.maps.items())[:count]))).shape[1] for count in (0, 1, 2, 3)
    ]
    assert np.diff(widths).min() > 300


def test_without_foreground_everything_shows() -> None:
    full = prediction(64, 64)
    empty = Prediction(full.depth, full.normals, np.zeros((64, 64), np.float32))
    assert panel(photo(64, 64), empty)[TITLE_HEIGHT : TITLE_HEIGHT + 480, GAP + 480 + GAP :][:, :480].min() < 60


def test_maps_with_nan_still_make_a_panel() -> None:
    broken = Prediction(*(np.full_like(value, np.nan) for value in prediction(64, 64).maps.values()))
    assert panel(photo(64, 64), broken).size


@pytest.mark.parametrize("limits", [(0.31, 0.44), (1.0, 1.001), (0.8, 3.2), (2.0, 65.0), (10.0, 65000.0)])
def test_the_scale_has_the_colours_and_ticks_of_its_range(limits: tuple[float, float]) -> None:
    bar = depth_scale(limits, 480)
    np.testing.assert_array_equal(bar[0, 0], colour_depth(np.array([[limits[0]]]), limits)[0, 0])
    np.testing.assert_array_equal(bar[0, -1], colour_depth(np.array([[limits[1]]]), limits)[0, 0])
    ticks = (bar[14] < 100).all(axis=-1).sum()
    assert 2 <= ticks <= 6


def test_a_long_name_stays_in_its_tile() -> None:
    image = np.full((480, 480, 3), 255, np.uint8)
    picture = panel(image, Prediction(), "a" * 300 + ".png")
    assert (picture[:, GAP + 480 :] == 255).all()
    assert text_width("a" * 300) > 480


def test_tiles_share_one_area() -> None:
    for size in ((64, 64), (1080, 1920), (4000, 3000)):
        h, w = tile_size(*size)
        assert abs(h / w - size[0] / size[1]) < 0.01 and abs(h * w / 480**2 - 1) < 0.01


def test_pictures_of_different_sizes_arrange() -> None:
    page = arrange([Tile("a", photo(50, 300)), Tile("b", photo(90, 40), "caption"), Tile("c", photo(10, 10))], 2)
    assert page.shape[1] == 2 * 300 + 3 * GAP
