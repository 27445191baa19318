"""Videos with transparency: alpha, times, rotation and sound arrive; nothing half-written stays."""

from __future__ import annotations

import struct
import sys
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from dpt_deploy.core.errors import BadInput, MissingPackage
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.alpha_video import AlphaWriter
from dpt_deploy.predict.reader import Reader
from dpt_deploy.predict.video import predict_video
from tests.predict.test_video import CPU, StandIn, clip

COUNT, SIZE = 12, (66, 90)
STEPS = (40, 80, 20)  # ms


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film of varying frame rate with a tone. Its frames grow brighter, and its right half is black."""
    av = pytest.importorskip("av", reason="PyAV, of the extra video, is not installed")
    path = tmp_path_factory.mktemp("source") / "film.mp4"
    with av.open(str(path), "w") as container:
        video = container.add_stream("mpeg4", rate=25)
        video.height, video.width, video.pix_fmt, video.bit_rate = *SIZE, "yuv420p", 4_000_000
        video.codec_context.time_base = video.time_base = Fraction(1, 1000)
        audio = container.add_stream("aac", rate=48_000, layout="mono")
        for i, time in enumerate(times()):
            picture = np.full((*SIZE, 3), 60 + 15 * i, np.uint8)
            picture[:, SIZE[1] // 2 :] = 0
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in range(0, times()[-1] * 48, 1024):
            wave = (8000 * np.sin(0.05 * np.arange(start, start + 1024))).astype(np.int16)
            sound = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 48_000, start, Fraction(1, 48_000)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    return path


def times() -> list[int]:
    return [sum(STEPS[k % 3] for k in range(i)) for i in range(COUNT)]


def written(path: Path) -> tuple[list[np.ndarray], list[float], float]:
    """RGBA frames, their times [ms], and the seconds of sound."""
    import av

    with av.open(str(path)) as container:
        video = container.streams.video[0]
        # FFmpeg's own decoder of VP9 drops the alpha.
        decoder = av.CodecContext.create("libvpx-vp9", "r") if path.suffix == ".webm" else video.codec_context
        frames = [frame for packet in container.demux(video) for frame in decoder.decode(packet)]
        shown = [float(frame.pts * video.time_base * 1000) for frame in frames]
        pixels = [frame.to_ndarray(format="rgba") for frame in frames]
    with av.open(str(path)) as container:
        samples = sum(frame.samples / frame.sample_rate for frame in container.decode(audio=0)) \
            if container.streams.audio else 0.0
    return pixels, shown, samples


@pytest.mark.parametrize("suffix", [".mov", ".webm"])
def test_alpha_times_and_sound_arrive(source: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"out{suffix}"
    with Reader(source) as reader:
        outcome = predict_video(StandIn(), reader, out, "cutout")
    assert outcome.frames == COUNT and "varying frame rate, kept" in outcome.notes
    assert ("sound copied" if suffix == ".mov" else "sound encoded as Opus") in outcome.notes
    frames, shown, seconds = written(out)
    np.testing.assert_allclose(shown, times(), atol=1)
    assert seconds == pytest.approx(times()[-1] / 1000, abs=0.06)
    for i, frame in enumerate(frames):  # of the stand-in, alpha is the brightness
        assert frame.shape == (*SIZE, 4)
        assert frame[20:40, 10:30, 3].mean() == pytest.approx(60 + 15 * i, abs=4)
        assert frame[20:40, 60:80, 3].mean() == pytest.approx(0, abs=4)
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_the_sound_ends_with_the_frames(source: Path, tmp_path: Path) -> None:
    with Reader(source) as reader:
        predict_video(StandIn(), reader, tmp_path / "out.mov", "cutout", max_frames=4)
    _, shown, seconds = written(tmp_path / "out.mov")
    assert len(shown) == 4 and seconds == pytest.approx((shown[-1] + 40) / 1000, abs=0.04)


def test_a_rotated_film_is_upright(source: Path, tmp_path: Path) -> None:
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # version 0: the matrix of the first track
    quarter = (0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data[at : at + 36] = struct.pack(">9i", *quarter)
    (tmp_path / "turned.mp4").write_bytes(data)
    with Reader(tmp_path / "turned.mp4") as reader:
        predict_video(StandIn(), reader, tmp_path / "out.mov", "cutout")
    frames, _, _ = written(tmp_path / "out.mov")
    assert frames[0].shape == (*SIZE[::-1], 4)
    assert frames[5][:40, :, 3].mean() > 100 > frames[5][50:, :, 3].mean(), "the black half is below"


def test_a_folder_of_frames_has_their_times(tmp_path: Path, tiny_bundle: Path, capsys) -> None:
    film = clip(tmp_path / "film.mp4", 3)
    for _ in range(2):  # again, over the first ones
        config = PredictConfig(tiny_bundle, (str(film),), tmp_path / "out", CPU, alpha_video="png", steady=True)
        assert main(config) == 0
    folder = tmp_path / "out" / "film.cutout"
    assert sorted(path.name for path in folder.iterdir()) == ["000000.png", "000001.png", "000002.png", "times.txt"]
    assert cv2.imread(str(folder / "000000.png"), cv2.IMREAD_UNCHANGED).shape == (66, 90, 4)
    assert (folder / "times.txt").read_text().split("\n")[1:3] == ["0.000", "83.333"]
    assert "steadied in 1 shot" in capsys.readouterr().out
    (folder / "mine.txt").write_text("")
    with pytest.raises(BadInput, match=r"holds mine\.txt"):
        main(config)


def test_interrupted_it_leaves_a_whole_file_and_on_an_error_none(source: Path, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with Reader(source) as reader:
        outcome = predict_video(StandIn(), reader, tmp_path / "out.mov", "cutout", progress=stop)
    assert outcome.interrupted and len(written(tmp_path / "out.mov")[0]) == 3
    with pytest.raises(ZeroDivisionError), AlphaWriter(tmp_path / "broken.mov", 25.0) as writer:
        writer.write(np.zeros((32, 32, 4), np.uint8))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["out.mov"]


def test_without_pyav_the_command_to_install_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingPackage, match=r"pip install.*av"):
        AlphaWriter(tmp_path / "out.mov", 25.0)
    AlphaWriter(tmp_path / "frames", 25.0)  # PNG files need nothing


@pytest.mark.parametrize(("options", "words"), [
    ({"steady": True}, "--steady: expected a video"), ({"alpha_video": "png"}, "--alpha-video: expected a video")])
def test_images_are_no_video(tiny_bundle: Path, tmp_path: Path, options: dict, words: str) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(BadInput, match=words):
        main(PredictConfig(tiny_bundle, (str(tmp_path / "one.png"),), tmp_path / "out", CPU, **options))
