"""Cut-outs and composites: colours at the edge against the true ones, every kind of background, and the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.metrics import angle
from dpt_deploy.report.cutout import Background, blurred_background, composite, cutout, estimate_colours
from dpt_deploy.report.writers import CONVENTIONS, write_depth_png, write_normals, write_picture
from tests.geometry.bodies import scene
from tests.tiny import photo

GREEN = np.float32((20, 170, 60))


def mixture(softness: float = 3, size: int = 384) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, alpha, and the foreground's true colours, float32: a body with a soft edge before a green background."""
    alpha = scene(3, size, size * 1.3).surface.alpha
    alpha = np.clip(cv2.GaussianBlur(alpha, (0, 0), softness), 0, 1)
    front = cv2.GaussianBlur(photo(size, size, 1), (0, 0), 2).astype(np.float32)
    back = photo(size, size, 9) * np.float32(0.3) + GREEN * np.float32(0.7)
    share = alpha[..., None]
    return (front * share + back * (1 - share) + 0.5).astype(np.uint8), alpha, front


def error(have: np.ndarray, want: np.ndarray, alpha: np.ndarray) -> float:
    """Mean absolute error of colours at the edge, weighted by alpha, in steps of 255."""
    edge = (alpha > 0.02) & (alpha < 0.98)
    return float((np.abs(have.astype(np.float32) - want).mean(axis=2) * alpha)[edge].sum() / alpha[edge].sum())


@pytest.mark.parametrize("softness", [1.5, 4.0])
def test_the_colours_of_the_edge_lose_the_background(softness: float) -> None:
    image, alpha, front = mixture(softness)
    found, back = estimate_colours(image, alpha)
    assert error(image, front, alpha) > 15
    assert error(found, front, alpha) < error(image, front, alpha) / 6
    share = alpha[..., None]
    edge = (alpha > 0.02) & (alpha < 0.98)
    mixed_again = np.abs(found * share + back * (1 - share) - image)[edge]
    assert mixed_again.mean() < 1.5, "both together give the image again"
    np.testing.assert_array_equal(found[alpha > 0.999], image[alpha > 0.999])


@pytest.mark.parametrize("make", [cutout, estimate_colours,
                                  lambda image, alpha: composite(image, alpha, Background.parse("white"))])
def test_images_and_alpha_of_other_ranges_are_refused(make: Callable[..., object]) -> None:
    """Floats in [0, 1] would be black, and bytes of alpha foreground everywhere."""
    image, alpha = photo(20, 30), np.full((20, 30), 0.5, np.float32)
    for wrong, matte, words in ((image / 255, alpha, r"received float64.*\* 255"), (image[..., :2], alpha, "received"),
                                (image, (alpha * 255).astype(np.uint8), "floats in"), (image, alpha[:9], "alpha"),
                                (image[None], alpha, "expected an image")):
        with pytest.raises(BadInput, match=words):
            make(wrong, matte)


@pytest.mark.parametrize("value", [0, 1, np.nan])
def test_alpha_without_an_edge_changes_nothing(value: float) -> None:
    image = photo(30, 50)
    alpha = np.full((30, 50), value, np.float32)
    found = cutout(image, alpha)
    assert found.shape == (30, 50, 4) and (found[..., 3] == (255 if value == 1 else 0)).all()
    if value == 1:
        np.testing.assert_array_equal(found[..., :3], image)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1)])
def test_images_of_a_few_pixels(size: tuple[int, int]) -> None:
    alpha = np.linspace(0.1, 0.9, size[0] * size[1], dtype=np.float32).reshape(size)
    assert cutout(photo(*size), alpha).shape == (*size, 4)
    assert composite(photo(*size), alpha, Background.parse("blur")).shape == (*size, 3)


def test_a_composite_over_another_colour_is_the_true_one() -> None:
    image, alpha, front = mixture()
    share = alpha[..., None]
    want = front * share + 255 * (1 - share)
    edge = (alpha > 0.02) & (alpha < 0.98)
    clean, raw = (composite(image, alpha, Background.parse("white"), one).astype(np.float32) for one in (True, False))
    assert np.abs(clean - want)[edge].mean() < np.abs(raw - want)[edge].mean() / 4
    np.testing.assert_array_equal(clean[alpha == 0], 255)


@pytest.mark.parametrize(("text", "colour"), [("#00b140", (0, 177, 64)), ("0,177,64", (0, 177, 64)),
                                              ("White", (255, 255, 255)), ("green", (0, 177, 64))])
def test_colours_by_name_and_number(text: str, colour: tuple[int, int, int]) -> None:
    found = Background.parse(text)
    assert (found.kind, found.colour) == ("colour", colour)


@pytest.mark.parametrize("text", ["", "puce", "#12345", "1,2", "1,2,256", "nowhere.png", "x" * 5000])
def test_an_unknown_background_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="expected blur, a colour"):
        Background.parse(text)


def test_a_picture_as_background_covers_and_is_cut_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((20, 80, 3), np.uint8)
    wide[:, 30:50] = (200, 100, 50)
    write_picture(tmp_path / "wide.png", wide)
    background = Background.parse(str(tmp_path / "wide.png"))
    picture = composite(photo(40, 40), np.zeros((40, 40), np.float32), background)
    np.testing.assert_array_equal(picture[:, 3:-3], np.broadcast_to((200, 100, 50), (40, 34, 3)))
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(BadInput, match=r"text\.png"):
        Background.parse(str(tmp_path / "text.png"))


def test_a_blurred_background_has_no_halo_of_the_foreground() -> None:
    image = np.full((200, 300, 3), GREEN, np.uint8)
    alpha = np.zeros((200, 300), np.float32)
    cv2.circle(alpha, (150, 100), 60, 1, -1)
    alpha = cv2.GaussianBlur(alpha, (0, 0), 2)
    mixed = (image * (1 - alpha[..., None]) + np.float32((255, 0, 255)) * alpha[..., None]).astype(np.uint8)
    background = blurred_background(mixed, alpha)
    assert np.abs(background - GREEN)[alpha < 0.9].max() < 12
    plain = cv2.GaussianBlur(mixed, (0, 0), 7).astype(np.float32)
    assert np.abs(plain - GREEN)[alpha < 0.01].max() > 40, "a plain blur would have one"
    assert composite(photo(50, 60), np.ones((50, 60), np.float32), Background("blur")).shape == (50, 60, 3)


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_rgba_files_keep_colours_and_alpha(tmp_path: Path, suffix: str) -> None:
    image, alpha, _ = mixture()
    want = cutout(image, alpha)
    write_picture(tmp_path / f"a{suffix}", want)
    with Image.open(tmp_path / f"a{suffix}") as file:
        have = np.array(file)
    np.testing.assert_array_equal(have[..., 3], want[..., 3])
    seen = want[..., 3] > 0
    np.testing.assert_array_equal(have[seen], want[seen])


def test_what_a_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="WebP"):
        write_picture(tmp_path / "a.webp", np.zeros((1, 16384, 4), np.uint8))
    with pytest.raises(BadInput, match=r"\.png or \.webp"):
        write_picture(tmp_path / "a.jpg", np.zeros((4, 4, 4), np.uint8))


def test_depth_in_millimetres_says_its_scale(tmp_path: Path) -> None:
    depth = np.array([[0.5, 1.2344, 65.535, 70, np.inf, np.nan]], np.float32)
    write_depth_png(tmp_path / "d.png", depth)
    with Image.open(tmp_path / "d.png") as file:
        stored, text = np.array(file), file.text
    assert stored.tolist() == [[500, 1234, 65535, 0, 0, 0]]
    assert text["Unit"] == "millimetre" and stored[0, 0] * float(text["Scale"]) == depth[0, 0]
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "d.png"), cv2.IMREAD_UNCHANGED), stored)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_normals_in_a_convention_that_the_file_names(tmp_path: Path, convention: str) -> None:
    """A normal that points right, up and towards the viewer, as each convention writes it."""
    import OpenEXR

    want = {"opengl": (1, 1, 1), "directx": (1, -1, 1), "camera": (1, -1, -1)}[convention]
    normals = np.random.default_rng(0).normal(size=(20, 30, 3)).astype(np.float32)
    normals /= np.linalg.norm(normals, axis=2, keepdims=True)
    normals[0, 0] = 3**-0.5
    for suffix in (".png", ".exr"):
        write_normals(tmp_path / f"n{suffix}", normals, convention)
    stored = cv2.imread(str(tmp_path / "n.png"), cv2.IMREAD_UNCHANGED)[..., ::-1].astype(np.float32) / 32767.5 - 1
    assert np.sign(stored[0, 0]).tolist() == list(want)
    assert angle(stored, normals * np.float32(want)).max() < 0.0015
    with Image.open(tmp_path / "n.png") as file:
        file.load()
        assert file.text["Convention"].startswith(f"{convention}: x right")
    with OpenEXR.File(str(tmp_path / "n.exr"), separate_channels=True) as file:
        assert file.header()["normalsConvention"].startswith(convention)
        planes = [file.channels()[f"N.{axis}"].pixels.copy() for axis in "XYZ"]
    np.testing.assert_array_equal(np.stack(planes, axis=2), normals * np.float32(want))


def test_unknown_conventions_and_suffixes_are_refused(tmp_path: Path) -> None:
    normals = np.ones((2, 2, 3), np.float32)
    with pytest.raises(BadInput, match="opengl, directx, camera"):
        write_normals(tmp_path / "n.png", normals, "unity")
    with pytest.raises(BadInput, match=r"\.png or \.exr"):
        write_normals(tmp_path / "n.jpg", normals)
