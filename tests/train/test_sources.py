"""The reader: every layout, every storage of the maps, and broken samples named."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import OpenEXR
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.report.writers import write_exr
from train.data import exr
from train.data.sources import open_source, split
from train.data.synthhuman import FILES, find_samples, read_files


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
