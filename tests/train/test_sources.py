"""The reader: every layout, every storage of the maps, and broken samples named."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.report.writers import write_exr
from train.check import CheckConfig
from train.check import main as check
from train.config import TrainConfig
from train.data import exr
from train.data.plausibility import implausible
from train.data.sources import open_source, split
from train.data.synthhuman import FILES, find_samples, read_files
from train.loop.setup import open_data


def flat_copy(data: Path, folder: Path, count: int = 6) -> list[str]:
    """The first samples of `data` in one folder; their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for path in sorted(data.rglob("rgb_*.png"))[:count]:
        name = path.stem.removeprefix("rgb_")
        for pattern in FILES:
            shutil.copy(path.with_name(pattern.format(name)), folder)
        names.append(name)
    return names


def test_parent_chunk_and_flat_folder_are_roots(data: Path, tmp_path: Path):
    whole = open_source(data)
    assert len(whole) == 24
    assert [whole.kinds.count(kind) for kind in ("face", "full_body", "upper_body")] == [8, 8, 8]
    chunk = open_source(data / "SynthHuman_0000")
    assert chunk.names == [f"{i:07d}" for i in range(8)]
    flat_copy(data, tmp_path)
    assert len(open_source(tmp_path)) == 6


def test_a_root_without_samples_says_what_was_expected(tmp_path: Path):
    with pytest.raises(BadInput, match=r"nothing there.*train\.synthetic"):
        open_source(tmp_path / "absent")
    with pytest.raises(BadInput, match=r"rgb_0000000\.png.*0 other files"):
        open_source(tmp_path)
    (tmp_path / "file.png").write_text("")
    with pytest.raises(BadInput, match="a file"):
        open_source(tmp_path / "file.png")


def test_an_incomplete_sample_is_named_and_left_out(data: Path, tmp_path: Path):
    names = flat_copy(data, tmp_path)
    (tmp_path / f"depth_{names[2]}.exr").unlink()
    source = find_samples(tmp_path)
    assert names[2] not in source.names
    assert len(source) == 5
    assert f"depth_{names[2]}.exr" in source.incomplete[0]


def test_depth_that_is_none_becomes_zero_and_centimetres_metres(data: Path, tmp_path: Path):
    (name,) = flat_copy(data, tmp_path, 1)
    depth = np.full((64, 64), 250.0, np.float32)
    depth[0, :5] = (65504, np.inf, 0, -3, np.nan)
    exr.write_depth(tmp_path / f"depth_{name}.exr", depth)
    sample = read_files(tmp_path, name)
    assert (sample.depth[0, :5] == 0).all()
    assert sample.depth[1, 1] == 2.5


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("channels", ["Y", "Z", "V", "RGB", "R"])
def test_depth_channels_of_any_name(dtype: type, channels: str, tmp_path: Path):
    depth = np.linspace(50, 500, 64 * 48, dtype=np.float32).reshape(48, 64).astype(dtype)
    write_exr(tmp_path / "depth.exr", dict.fromkeys(channels, depth))
    read = exr.read_depth(tmp_path / "depth.exr")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, depth.astype(np.float32))


@pytest.mark.parametrize("names", ["BGR", "XYZ"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_normal_channels_b_g_r_and_x_y_z_are_x_y_z(names: str, dtype: type, tmp_path: Path):
    vectors = np.random.default_rng(0).normal(size=(3, 20, 30)).astype(dtype)
    write_exr(tmp_path / "normal.exr", dict(zip(names, vectors, strict=True)))
    np.testing.assert_array_equal(exr.read_vectors(tmp_path / "normal.exr"), np.moveaxis(vectors, 0, -1))


def test_an_rgb_exr_written_as_one_channel_group_is_read_too(tmp_path: Path):
    rgb = np.random.default_rng(1).normal(size=(20, 30, 3)).astype(np.float32)
    with OpenEXR.File({"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}, {"RGB": rgb}) as file:
        file.write(str(tmp_path / "normal.exr"))
    np.testing.assert_array_equal(exr.read_vectors(tmp_path / "normal.exr"), rgb[..., ::-1])  # B, G, R are x, y, z


def test_alpha_is_divided_by_its_own_maximum(data: Path, tmp_path: Path):
    (name,) = flat_copy(data, tmp_path, 1)
    path = tmp_path / f"alpha_{name}.png"
    eight = read_files(tmp_path, name).alpha
    cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16) * 257)
    np.testing.assert_allclose(read_files(tmp_path, name).alpha, eight, atol=1e-6)


def test_broken_files_are_named(data: Path, tmp_path: Path):
    (name,) = flat_copy(data, tmp_path, 1)
    keep = {pattern: (tmp_path / pattern.format(name)).read_bytes() for pattern in FILES}
    for pattern in FILES:
        path = tmp_path / pattern.format(name)
        path.write_bytes(keep[pattern][: len(keep[pattern]) // 3] if pattern[:3] != "cam" else b"1 2\n")
        with pytest.raises(BadInput, match=path.name.replace(".", r"\.")):
            read_files(tmp_path, name)
        path.unlink()
        with pytest.raises(BadInput, match=path.name.replace(".", r"\.")):
            read_files(tmp_path, name)
        path.write_bytes(keep[pattern])
    read_files(tmp_path, name)


def test_maps_of_different_sizes_are_refused_with_their_sizes(data: Path, tmp_path: Path):
    (name,) = flat_copy(data, tmp_path, 1)
    exr.write_depth(tmp_path / f"depth_{name}.exr", np.ones((32, 64), np.float32))
    with pytest.raises(BadInput, match=rf"rgb_{name}\.png 64x64.*depth_{name}\.exr 32x64"):
        read_files(tmp_path, name)


def test_split_is_stratified_and_keeps_samples_on_their_side():
    names = [f"{i:07d}" for i in range(900)]
    kinds = [("face", "full_body", "upper_body")[i % 3] for i in range(900)]
    train, val = split(names, kinds, 0.1)
    assert sorted(train + val) == list(range(900))
    for kind in set(kinds):
        assert 15 <= sum(kinds[i] == kind for i in val) <= 50
    some = list(range(0, 900, 2))
    _, fewer = split([names[i] for i in some], [kinds[i] for i in some], 0.1)
    assert {names[some[i]] for i in fewer} <= {names[i] for i in val}
    train, val = split(names[:6], kinds[:6], 0.01)
    assert sorted(kinds[i] for i in val) == ["face", "full_body", "upper_body"]
    assert split(names[:1], kinds[:1], 0.01) == ([0], []), "a kind's only sample is trained on"


def test_the_fingerprint_notices_a_change_in_any_file(data: Path, tmp_path: Path):
    (name,) = flat_copy(data, tmp_path, 1)
    before = find_samples(tmp_path).fingerprint()
    for pattern in FILES:
        path = tmp_path / pattern.format(name)
        whole = path.read_bytes()
        path.write_bytes(whole + b" ")
        assert find_samples(tmp_path).fingerprint() != before, pattern
        path.write_bytes(whole)
    assert find_samples(tmp_path).fingerprint() == before


def people_depth(size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Depth of a disc in front of nothing [cm], and where the disc is."""
    y, x = np.mgrid[0:size, 0:size]
    disc = (y - size / 2) ** 2 + (x - size / 2) ** 2 < (size / 3) ** 2
    surface = 150 + 10 * np.sin(x / 20) + np.random.default_rng(0).normal(0, 1, (size, size))
    return np.where(disc, surface, 65504).astype(np.float16), disc


@pytest.mark.parametrize("compression", ["DWAA", "DWAB", "B44", "PXR24", "ZIP"])
def test_lossy_compression_does_not_turn_the_background_into_depth(
    compression: str, data: Path, tmp_path: Path
) -> None:
    (name,) = flat_copy(data, tmp_path, 1)
    depth, disc = people_depth(64)
    header = {"compression": getattr(OpenEXR, f"{compression}_COMPRESSION"), "type": OpenEXR.scanlineimage}
    with OpenEXR.File(header, {"Y": depth}) as file:
        file.write(str(tmp_path / f"depth_{name}.exr"))
    sample = read_files(tmp_path, name)
    np.testing.assert_array_equal(sample.depth > 0, disc)
    assert sample.depth.max() < 2.1 and implausible(sample) is None


def test_a_range_that_people_do_not_have_is_named_before_training(
    data: Path, tmp_path: Path, config: Callable[..., TrainConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    (name,) = flat_copy(data, tmp_path, 1)
    depth, _ = people_depth(64)
    for wrong, what in ((np.where(depth > 1000, 19_000.0, depth), "from 1.* m to 190"),
                        (np.where(depth > 1000, 1e-3, depth), "from 1e-05 m to 1"),
                        (np.where(depth > 1000, 0, depth / 100), "another unit than centimetres"),
                        (np.zeros((64, 64)), "no pixel has depth")):
        exr.write_depth(tmp_path / f"depth_{name}.exr", wrong)
        with pytest.raises(BadInput, match=rf"sample {name}: .*{what}.*--no-check-data"):
            check(CheckConfig(tmp_path))
        assert f"implausible depth in 1 of 1 samples:\n  {name}: " in capsys.readouterr().out
        with pytest.raises(BadInput, match=what):
            open_data(config(data_root=tmp_path, val_fraction=0.0), print)
        open_data(config(data_root=tmp_path, val_fraction=0.0, check_data=False), print)


def part(name: str, **channels: float) -> OpenEXR.Part:
    return OpenEXR.Part({"name": name}, {
        key.replace("_", "."): np.full((20, 30), value, np.float32) for key, value in channels.items()})


def check_channels(read: Callable[[Path], np.ndarray], parts: list, expected: float | tuple | str, path: Path) -> None:
    """A file of `parts` gives the expected pixels, or is refused with a sentence."""
    OpenEXR.File(parts).write(str(path))
    if isinstance(expected, str):
        with pytest.raises(BadInput, match=expected):
            read(path)
    else:
        assert (read(path) == expected).all()


@pytest.mark.parametrize(("parts", "value"), [
    ([part("", depth=2, Y=1)], 2), ([part("", Z=2, A=1)], 2), ([part("", Y=2, A=1)], 2), ([part("", V=2, A=1)], 2),
    ([part("", weird=2)], 2), ([part("", R=2, G=2, B=2, A=1)], 2), ([part("", depth_V=2, R=1, G=1, B=1)], 2),
    ([part("", z=2)], 2), ([part("", depth_Z=2, normal_X=0, normal_Y=0, normal_Z=1)], 2),
    ([part("beauty", R=1, G=3, B=4), part("depth", Z=2)], 2), ([part("beauty", Y=1), part("depth", Y=2)], 2),
    ([part("", Z=2, depth=2)], 2),
    ([part("", Z=2, depth=1)], "differ: Z; depth|differ: depth; Z"), ([part("", a=1, b=2)], "channels a, b"),
    ([part("", R=1, G=2, B=3)], "several"), ([part("one", Z=1), part("two", Z=2)], r"one\.Z.*two\.Z"),
    ([part("", X=1, Y=2, Z=3)], "channels X, Y, Z"),
])
def test_the_depth_channel_follows_the_rule(parts: list, value: float | str, tmp_path: Path) -> None:
    check_channels(exr.read_depth, parts, value, tmp_path / "depth.exr")


@pytest.mark.parametrize(("parts", "vector"), [
    ([part("", R=1, G=2, B=3, A=9)], (3, 2, 1)), ([part("", x=1, y=2, z=3)], (1, 2, 3)),
    ([part("", R=7, G=8, B=9, Normal_X=1, Normal_Y=2, Normal_Z=3)], (1, 2, 3)),
    ([part("beauty", R=7, G=8, B=9), part("normals", R=1, G=2, B=3)], (3, 2, 1)),
    ([part("", R=1, G=2, B=3, X=1, Y=2, Z=3)], "several"),
    ([part("a", R=1, G=2, B=3), part("b", R=4, G=2, B=3)], "a.B"),
    ([part("", X=1, Y=2)], "received channels X, Y"),
])
def test_the_normal_channels_follow_the_rule(parts: list, vector: tuple | str, tmp_path: Path) -> None:
    check_channels(exr.read_vectors, parts, vector, tmp_path / "normal.exr")


def test_nan_is_no_depth_and_no_normal(data: Path, tmp_path: Path) -> None:
    (name,) = flat_copy(data, tmp_path, 1)
    depth = exr.read_depth(tmp_path / f"depth_{name}.exr")
    depth[:20] = np.nan
    exr.write_depth(tmp_path / f"depth_{name}.exr", depth)
    normals = exr.read_vectors(tmp_path / f"normal_{name}.exr")
    normals[:10] = np.nan
    normals[10:20] = np.inf
    exr.write_vectors(tmp_path / f"normal_{name}.exr", normals)
    sample = read_files(tmp_path, name)
    assert not sample.depth[:20].any() and not sample.normals[:20].any()
    assert sample.depth[20:].any() and sample.normals[20:].any() and np.isfinite(sample.normals).all()


def test_a_damaged_exr_is_one_sentence_without_the_librarys_chatter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "depth.exr"
    planes = [("one", "Y", np.ones((64, 64), np.float32)), ("depth", "Z", np.indices((64, 64))[0].astype(np.float32))]
    OpenEXR.File([OpenEXR.Part({"name": name}, {channel: plane}) for name, channel, plane in planes]).write(str(path))
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:100], b"", whole[:-60] + b"\xff" * 60, b"no picture" * 99,
                    whole[:-30], whole[:-200] + bytes(200)):
        path.write_bytes(damaged)
        with pytest.raises(BadInput, match="expected an OpenEXR file, but it cannot be read") as caught:
            exr.read_depth(path)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    path.write_bytes(whole)
    with exr._library_messages():
        os.write(2, b"of another thread")
    assert (exr.read_depth(path) == np.indices((64, 64))[0]).all() and capfd.readouterr().err == "of another thread"


def test_the_size_of_an_exr_is_limited_before_it_is_read(tmp_path: Path) -> None:
    exr.write_depth(tmp_path / "depth.exr", np.ones((40, 50)))
    with pytest.raises(BadInput, match=r"40x50.*limit.*--max-pixels"):
        exr.read_depth(tmp_path / "depth.exr", max_pixels=1999)


def test_an_alpha_of_floats_is_named(data: Path, tmp_path: Path) -> None:
    (name,) = flat_copy(data, tmp_path, 1)
    cv2.imwrite(str(tmp_path / "alpha.tiff"), np.full((64, 64), 0.5, np.float32))
    (tmp_path / "alpha.tiff").rename(tmp_path / f"alpha_{name}.png")
    with pytest.raises(BadInput, match=rf"alpha_{name}\.png.*32-bit floating-point"):
        read_files(tmp_path, name)


@pytest.mark.parametrize(("text", "what"), [
    ("1 2 3\n" * 2_000_000, "a file of more than 4096 bytes"), ("1 2 3\n" * 500, "500 rows of 3 values"),
    ("", "0 rows of no"),
    ("1 2 3\n4 5\n6 7 8", "3 rows of 2 or 3 values"), ("1e308 0 32\n0 1e308 32\n0 0 1", "0.05 to 1000 times"),
    ("70 0 32\n0 1e308 32\n0 0 1", "focal length"), ("1e-9 0 32\n0 70 32\n0 0 1", "focal length"),
    ("70 0 1e300\n0 70 32\n0 0 1", "focal length"), ("70 0 32\n0 nan 32\n0 0 1", "focal length"),
    ("70 0 32\n0 70 32\n5 5 5", "last row 0 0 1"), ("a b c\n" * 3, "cannot be read"),
])
def test_a_camera_that_cannot_be_one_is_a_short_sentence(text: str, what: str, data: Path, tmp_path: Path) -> None:
    (name,) = flat_copy(data, tmp_path, 1)
    (tmp_path / f"cam_{name}.txt").write_text(text)
    with pytest.raises(BadInput, match=rf"cam_{name}\.txt.*{what}") as caught:
        read_files(tmp_path, name)
    assert len(str(caught.value)) < 500


def test_the_pixels_of_a_sample_are_limited(data: Path, tmp_path: Path) -> None:
    (name,) = flat_copy(data, tmp_path, 1)
    with pytest.raises(BadInput, match=rf"rgb_{name}\.png.*64x64.*--max-pixels"):
        open_source(tmp_path, max_pixels=64 * 63).read(0)


def test_the_check_names_and_counts_a_broken_sample(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, *_ = flat_copy(data, tmp_path)
    assert check(CheckConfig(tmp_path)) == 0
    (tmp_path / f"normal_{name}.exr").write_bytes(b"")
    assert check(CheckConfig(tmp_path)) == 1
    assert f"broken sample skipped: {tmp_path}/normal_{name}.exr" in capsys.readouterr().out
    with pytest.raises(BadInput, match="--max-broken 0"):
        check(CheckConfig(tmp_path, max_broken=0))
