"""Videos and cameras: what is written, in which order, and that an interrupted one plays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.image_files import MAX_PIXELS
from dpt_deploy.predict import reader as reader_module
from dpt_deploy.predict import video
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.reader import Reader, video_file
from dpt_deploy.predict.video import Writer, matte, predict_video
from dpt_deploy.runtime import Prediction, Runtime, load
from tests.tiny import photo

CPU = "onnxruntime-cpu"


def clip(path: Path, frames: int, size: tuple[int, int] = (66, 90)) -> Path:
    """A video whose frames grow brighter, so that their order can be told."""
    with Writer(path, 12.0) as writer:
        for i in range(frames):
            writer.write(np.full((*size, 3), 20 + 200 * i // frames, np.uint8))
    return path


def frames_of(path: Path) -> list[np.ndarray]:
    with Reader(path) as reader:
        return list(reader)


class StandIn(Runtime):
    """A runtime without a network: alpha follows the frame's brightness."""

    def __init__(self) -> None:
        self.session = SimpleNamespace(concurrency=1)
        self.bundle = SimpleNamespace(contract=Contract())
        self.max_pixels = MAX_PIXELS

    def _predict(self, frames: list[np.ndarray]) -> list[Prediction]:
        return [Prediction(np.ones(f.shape[:2], np.float32), None, f[..., 0] / np.float32(255)) for f in frames]


def test_a_clip_comes_back_frame_by_frame(tiny_bundle: Path, tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", 5)
    assert main(PredictConfig(tiny_bundle, (str(source),), tmp_path / "out", CPU)) == 0
    written = frames_of(tmp_path / "out" / "in.panel.mp4")
    assert len(written) == 5 and len({frame.shape for frame in written}) == 1
    with Reader(tmp_path / "out" / "in.panel.mp4") as reader:
        assert reader.fps == pytest.approx(12) and reader.length == 5


def test_the_matte_shows_each_frame_over_green_in_order(tmp_path: Path) -> None:
    source = clip(tmp_path / "in.mp4", 8)
    with Reader(source) as reader:
        assert predict_video(StandIn(), reader, tmp_path / "out.mp4", "matte").frames == 8
    brightness = [frame[..., 0].mean() for frame in frames_of(tmp_path / "out.mp4")]
    assert len(brightness) == 8 and brightness == sorted(brightness), "red is the frame's own, times alpha"
    with Reader(source) as reader:
        assert predict_video(StandIn(), reader, tmp_path / "two.mp4", "matte", max_frames=2).frames == 2
    assert len(frames_of(tmp_path / "two.mp4")) == 2


def test_matte_colours() -> None:
    frame = photo(10, 12)
    everything = Prediction(alpha=np.ones((10, 12), np.float32))
    np.testing.assert_array_equal(matte(frame, everything), frame)
    nothing = matte(frame, Prediction(alpha=np.zeros((10, 12), np.float32)))
    assert (nothing == video.BACKDROP).all()
    with pytest.raises(BadInput, match="head alpha"):
        matte(frame, Prediction())


def test_interrupted_it_leaves_a_video_that_plays(tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with Reader(clip(tmp_path / "in.mp4", 9)) as reader:
        outcome = predict_video(StandIn(), reader, tmp_path / "out.mp4", progress=stop)
        assert outcome.frames == 3 and outcome.interrupted
    assert len(frames_of(tmp_path / "out.mp4")) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_with_a_video_that_plays(
    tiny_bundle: Path, tmp_path: Path, number: signal.Signals
) -> None:
    source, out = tmp_path / "in.mp4", tmp_path / "out"
    rng = np.random.default_rng(0)
    with Writer(source, 12.0) as writer:  # noise does not compress: the first frames show in the file's size
        for _ in range(1500):
            writer.write(rng.integers(0, 256, (66, 90, 3), dtype=np.uint8))
    command = [sys.executable, "-m", "dpt_deploy.predict", tiny_bundle, source, "--out", out, "--backend", CPU]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          cwd=Path(__file__).parents[2]) as process:
        target = out / "in.panel.mp4"
        while process.poll() is None and not (target.exists() and target.stat().st_size > 40_000):
            time.sleep(0.05)
        process.send_signal(number)
        said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + number, said
    assert "interrupted: " in said and "Traceback" not in said
    assert 0 < len(frames_of(target)) < 1500


def test_a_camera_is_named_by_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = str(clip(tmp_path / "film.mp4", 4))
    asked, real = [], cv2.VideoCapture

    def capture(source: object, *options: object) -> cv2.VideoCapture:
        if isinstance(source, str):
            return real(source, *options)
        asked.append(source)
        return real(film)

    monkeypatch.setattr(reader_module.cv2, "VideoCapture", capture)
    with Reader(Path("3")) as reader:
        assert asked == [3] and video_file("3") == Path("camera3") and reader.length is None
        assert predict_video(StandIn(), reader, tmp_path / "out.mp4", max_frames=3).frames == 3


def test_what_is_no_video_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    for source, words in ((tmp_path / "no.mp4", "no file"), (Path("97"), "camera 97: no frame")):
        with pytest.raises(BadInput, match=words):
            main(PredictConfig(tiny_bundle, (str(source),), tmp_path / "out", CPU))
    (tmp_path / "bad.mp4").write_bytes(b"not a video" * 100)
    with pytest.raises(BadInput, match="OpenCV can decode"):
        main(PredictConfig(tiny_bundle, (str(tmp_path / "bad.mp4"),), tmp_path / "out", CPU))


def test_a_folder_that_cannot_be_written_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    source = clip(tmp_path / "in.mp4", 2)
    with load(tiny_bundle, CPU) as runtime, Reader(source) as reader, pytest.raises(BadInput, match="cannot write"):
        predict_video(runtime, reader, tmp_path / "file" / "out.mp4")
