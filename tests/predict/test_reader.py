"""Videos as people have them: damaged, of varying rate, of odd size, of any container, animated, from the network."""

from __future__ import annotations

import contextlib
import functools
import http.server
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.places import shown
from dpt_deploy.predict import mp4
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.reader import Reader, camera_index, is_video, video_file
from dpt_deploy.predict.video import Writer, predict_video
from tests.predict.test_video import StandIn
from tests.tiny import photo

ROOT = Path(__file__).resolve().parents[2]
COUNT, FPS = 29, 12.0
CONTAINERS = [("mp4", "mp4v"), ("mov", "MJPG"), ("avi", "MJPG"), ("mkv", "mp4v"), ("ts", "mp4v"), ("webm", "VP80"),
              ("wmv", "WMV2"), ("flv", "FLV1")]


@pytest.fixture(autouse=True, scope="module")
def silent() -> Iterator[None]:
    level = cv2.utils.logging.setLogLevel(0)
    yield
    cv2.utils.logging.setLogLevel(level)


def clip(path: Path, codec: str, size: tuple[int, int] = (66, 90)) -> Path:
    """A moving picture that does not compress to nothing."""
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, cv2.VideoWriter_fourcc(*codec), FPS, size[::-1])
    if not writer.isOpened():
        pytest.skip(f"this build of OpenCV cannot encode {codec}")
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for i in range(COUNT):
        writer.write(np.roll(noise, 3 * i, 1) // 2 + 4 * i)
    writer.release()
    return path


def damaged(path: Path, first: float = 0.35, last: float = 0.55) -> Path:
    data = bytearray(path.read_bytes())
    start, end = int(len(data) * first), int(len(data) * last)
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS)
def test_a_whole_clip_is_no_damaged_one(tmp_path: Path, suffix: str, codec: str) -> None:
    path = clip(tmp_path / f"in.{suffix}", codec)
    with Reader(path) as reader:
        assert len(list(reader)) == COUNT and reader.damage() == ""
        assert np.allclose(np.diff(reader.times), 1000 / FPS, atol=1)


@pytest.mark.parametrize(("suffix", "codec"), CONTAINERS[:6])
def test_damage_is_counted_and_read_past(tmp_path: Path, suffix: str, codec: str) -> None:
    path = damaged(clip(tmp_path / f"in.{suffix}", codec))
    with Reader(path) as reader:
        frames = list(reader)
        said = reader.damage()
    assert 10 < len(frames) < COUNT
    assert f"{len(frames)} of " in said and f"{COUNT} frames were read; damaged or missing: " in said, said
    if suffix != "avi":  # FFmpeg searches the index of an AVI for no later frame
        assert reader.times[-1] == pytest.approx((COUNT - 1) * 1000 / FPS, abs=2), "frames after the damage are read"
        with Reader(path) as again:
            predict_video(StandIn(), again, tmp_path / "out.mp4", "matte")
        with Reader(tmp_path / "out.mp4") as written:
            assert len(list(written)) == len(frames)
            np.testing.assert_allclose(written.times, np.array(reader.times) - reader.times[0], atol=1)


def test_a_damaged_clip_ends_with_status_1(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    path = damaged(clip(tmp_path / "in.mp4", "mp4v"))
    assert main(PredictConfig(tiny_bundle, (str(path),), tmp_path / "out", "onnxruntime-cpu")) == 1
    said = capsys.readouterr().out
    assert "frames written to" in said and "skipped  " in said and "of 29 frames were read" in said


def test_a_cut_clip_says_how_much_there_was(tmp_path: Path) -> None:
    path = clip(tmp_path / "in.avi", "MJPG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with Reader(path) as reader:
        count = len(list(reader))
        assert 5 < count < COUNT and f"{count} of {COUNT} frames were read" in reader.damage()


def test_frames_that_were_not_asked_for_are_not_missing(tmp_path: Path) -> None:
    with Reader(clip(tmp_path / "in.mp4", "mp4v")) as reader:
        assert predict_video(StandIn(), reader, tmp_path / "out.mp4", max_frames=3).frames == 3
        assert reader.damage() == "" and len(reader.times) == 3


def test_a_varying_frame_rate_is_kept(tmp_path: Path) -> None:
    times = [0.0, 40.0, 80.0, 500.0, 540.0, 1540.0, 1580.0]
    with Writer(tmp_path / "in.mp4", 25) as writer:
        for i, time in enumerate(times):
            writer.write(np.full((66, 90, 3), 30 * i, np.uint8), time)
    assert writer.varies
    with Reader(tmp_path / "in.mp4") as reader:
        outcome = predict_video(StandIn(), reader, tmp_path / "out.mp4", "matte")
        assert reader.damage() == ""
    assert outcome.notes == ("varying frame rate, kept",)
    for name in ("in.mp4", "out.mp4"):
        with Reader(tmp_path / name) as reader:
            assert len(list(reader)) == len(times)
            np.testing.assert_allclose(reader.times, times, atol=0.2)


@pytest.mark.parametrize("size", [(65, 91), (65, 90), (66, 91), (1, 1), (17, 33), (479, 641)])
def test_odd_sizes_stay(tmp_path: Path, size: tuple[int, int]) -> None:
    noise = photo(size[0], size[1]) if min(size) > 8 else np.full((*size, 3), 100, np.uint8)
    with Writer(tmp_path / "odd.mp4", 10) as writer:
        for i in range(5):
            writer.write(np.roll(noise, 5 * i, 1))
    with Reader(tmp_path / "odd.mp4") as reader:
        frames = list(reader)
    assert [frame.shape for frame in frames] == [(*size, 3)] * 5
    assert all(np.abs(frame.astype(int) - np.roll(noise, 5 * i, 1)).mean() < 16 for i, frame in enumerate(frames))


def test_frames_of_another_size_are_resized_and_told(tmp_path: Path) -> None:
    with Writer(tmp_path / "out.mp4", 10) as writer:
        for size in ((64, 80), (64, 80), (32, 40)):
            writer.write(photo(*size))
    assert writer.resized == 1


def test_kinds_are_told_by_content(tiny_bundle: Path, tmp_path: Path) -> None:
    for suffix, codec in CONTAINERS:
        path = clip(tmp_path / f"in.{suffix}", codec)
        assert is_video(path)
        assert is_video(path.rename(tmp_path / f"{suffix}_without_suffix"))
    cv2.imwrite(str(tmp_path / "a.png"), photo(40, 40))
    (tmp_path / "a.png").rename(tmp_path / "picture.mp4")
    (tmp_path / "text.txt").write_text("FFmpeg draws text as a video.\n" * 100)
    (tmp_path / "list.m3u8").write_text("#EXTM3U\n#EXTINF:10,\nin.mp4\n")
    (tmp_path / "empty").touch()
    for name in ("picture.mp4", "text.txt", "list.m3u8", "empty"):
        assert not is_video(tmp_path / name), name
    for name in ("text.txt", "list.m3u8", "empty"):
        with pytest.raises(BadInput):
            Reader(tmp_path / name)
    film = tmp_path / "wmv_without_suffix"
    assert main(PredictConfig(tiny_bundle, (str(film),), tmp_path / "out", "onnxruntime-cpu", max_frames=2)) == 0
    assert (tmp_path / "out" / "wmv_without_suffix.panel.mp4").exists()


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_an_animation_is_a_video_when_asked(tiny_bundle: Path, tmp_path: Path, suffix: str, capsys) -> None:
    durations = [50, 100, 200, 50, 50]
    pictures = [Image.fromarray(np.full((66, 91, 3), 20 + 40 * i, np.uint8)) for i in range(5)]
    path = tmp_path / f"a.{suffix}"
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations)
    with Reader(path) as reader:
        frames = list(reader)
        assert np.allclose([frame.mean() for frame in frames], [20 + 40 * i for i in range(5)], atol=3)
        if suffix in ("gif", "webp"):
            np.testing.assert_allclose(np.diff(reader.times), durations[:4], atol=1)
        assert reader.damage() == ""
    backend = "onnxruntime-cpu"
    assert main(PredictConfig(tiny_bundle, (str(path),), tmp_path / "out", backend, video=True)) == 0
    assert "5 frames written to" in capsys.readouterr().out
    status = main(PredictConfig(tiny_bundle, (str(path),), tmp_path / "images", backend))
    said = capsys.readouterr().out
    if suffix == "tiff":
        assert status == 0 and len(list((tmp_path / "images").glob("a.page*.npz"))) == 5
    else:
        assert status == 1 and "only the first of its 5 frames is predicted. Use --video" in said


def test_a_network_stream_is_read(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    clip(tmp_path / "film.mkv", "mp4v")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        config = PredictConfig(tiny_bundle, (f"{address}/film.mkv",), tmp_path / "out", "onnxruntime-cpu", max_frames=4)
        assert main(config) == 0
        with pytest.raises(BadInput, match="no frame received"):
            Reader(f"{address}/nothing.mp4")
        server.shutdown()
    assert "4 frames written to" in capsys.readouterr().out and (tmp_path / "out" / "film.panel.mp4").exists()


def test_passwords_of_addresses_are_not_shown() -> None:
    assert shown("rtsp://me:secret@camera/live?channel=1") == "rtsp://...@camera/live"
    assert [camera_index(name) for name in ("0", "12", "9" * 4401, "x" * 300, "-1")] == [0, 12, None, None, None]
    assert video_file("rtsp://me:secret@camera/live/1?x=2") == Path("camera/1")
    assert video_file("rtsp://me:secret@camera") == Path("camera")


LIMITED = """
import resource, sys
import numpy as np
from pathlib import Path
from dpt_deploy.core.errors import BadInput
from dpt_deploy.predict.video import Writer
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
rng = np.random.default_rng(0)
try:
    with Writer(Path(sys.argv[1]), 12) as writer:
        for _ in range(60):
            writer.write(rng.integers(0, 256, (66, 90, 3), dtype=np.uint8))
except BadInput as error:
    print(error)
"""


def test_a_video_that_does_not_fit_is_no_written_one(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    done = subprocess.run([sys.executable, "-c", LIMITED, path], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"cannot write {path}: of 60 frames written, " in done.stdout, done
    assert not path.exists()


def test_a_nearly_full_disk_leaves_what_plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([1 << 30] * 2 + [1 << 20] * 9)
    monkeypatch.setattr("dpt_deploy.predict.video.shutil.disk_usage", lambda _: type("Usage", (), {"free": next(free)}))
    with pytest.raises(BadInput, match="No space left"), Writer(tmp_path / "out.mp4", 12) as writer:
        for _ in range(60):
            writer.write(photo(66, 90))
    with Reader(tmp_path / "out.mp4") as reader:
        assert len(list(reader)) == 32
    with pytest.raises(BadInput, match="No space left"), Writer(tmp_path / "two.mp4", 12) as writer:
        writer.write(photo(66, 90))
    assert not (tmp_path / "two.mp4").exists()


def test_the_index_of_other_files_is_refused(tmp_path: Path) -> None:
    path = clip(tmp_path / "in.avi", "MJPG")
    with pytest.raises(ValueError):
        mp4.rewrite(path, [40.0] * COUNT)
    assert not mp4.is_trimmed(path)


def test_a_trimmed_clip_is_no_damaged_one(tmp_path: Path) -> None:
    """As phones store a trimmed video: all frames in the file, and an edit list that shows some."""
    path = clip(tmp_path / "in.mp4", "mp4v")
    data = path.read_bytes()
    at = data.index(b"elst") + 12
    path.write_bytes(data[:at] + (1000).to_bytes(4, "big") + data[at + 4 :])  # of 2417 ms
    assert mp4.is_trimmed(path)
    with Reader(path) as reader:
        assert len(list(reader)) < COUNT and reader.damage() == ""


def test_a_damaged_index_is_no_trimmed_one(tmp_path: Path) -> None:
    data = clip(tmp_path / "in.mp4", "mp4v").read_bytes()
    index = data.index(b"moov") - 4
    rng = np.random.default_rng(0)
    path = tmp_path / "mutant.mp4"
    for _ in range(500):
        mutant = bytearray(data)
        for place in rng.integers(index, len(data), rng.integers(1, 6)):
            mutant[place] = rng.integers(0, 256)
        path.write_bytes(mutant[: rng.integers(index, len(data) + 1)])
        mp4.is_trimmed(path)
        with contextlib.suppress(ValueError, struct.error, LookupError):
            mp4.rewrite(path, [10.0] * COUNT)
    nested = b""
    for _ in range(3000):
        nested = (len(nested) + 8).to_bytes(4, "big") + b"trak" + nested
    path.write_bytes(data[:index] + (len(nested) + 8).to_bytes(4, "big") + b"moov" + nested)
    assert not mp4.is_trimmed(path)
    path.write_bytes(data[:index] + b"\0\0\0\x08free" * 100_000)
    assert not mp4.is_trimmed(path)
