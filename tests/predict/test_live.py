"""Cameras and streams: the newest frame wins, what is dropped is counted, and a stream that breaks comes back."""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.live import LiveStreams
from dpt_deploy.predict.live_video import Recording, predict_live
from dpt_deploy.predict.reader import Reader, video_file
from dpt_deploy.predict.sources import output_stems
from dpt_deploy.predict.video import PICTURES
from dpt_deploy.runtime import Runtime, load

ROOT = Path(__file__).resolve().parents[2]
CPU = "onnxruntime-cpu"


class Cameras:
    """An HTTP server of Motion JPEG, as network cameras have: /HEIGHTxWIDTH/FPS/FRAMES. Frame i has brightness i."""

    def __init__(self) -> None:
        self.cut = threading.Event()
        self.sent = 0
        self._server: http.server.ThreadingHTTPServer | None = None
        self.port = 0

    def start(self) -> None:
        cameras = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                size, fps, frames = self.path.strip("/").split("/")
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                height, width = map(int, size.split("x"))
                with contextlib.suppress(OSError):
                    for i in range(int(frames)):
                        if cameras.cut.is_set():
                            return
                        frame = np.full((height, width, 3), i % 256, np.uint8)
                        data = cv2.imencode(".jpg", frame, (cv2.IMWRITE_JPEG_QUALITY, 100))[1].tobytes()
                        head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                        self.wfile.write(head.encode() + data + b"\r\n")
                        cameras.sent += 1
                        time.sleep(1 / float(fps))

            def log_message(self, *arguments: object) -> None:
                pass

        self.cut.clear()
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def stop(self) -> None:
        """End all connections, and refuse new ones."""
        self.cut.set()
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def address(self, size: str = "66x90", fps: float = 100, frames: int = 100_000) -> str:
        return f"http://127.0.0.1:{self.port}/{size}/{fps}/{frames}"


@pytest.fixture
def cameras() -> Iterator[Cameras]:
    server = Cameras()
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    with load(tiny_bundle, CPU) as opened:
        yield opened


def wait_for_videos(folder: Path, count: int) -> None:
    """Until some frames of so many streams are predicted, or a minute has passed."""
    end = time.monotonic() + 60
    while len(list(folder.glob("*.mp4"))) < count and time.monotonic() < end:
        time.sleep(0.02)
    time.sleep(0.5)


def records_of(streams: LiveStreams, folder: Path, **options: Any) -> list[Recording]:
    return [Recording(stream, lambda number, i=i: folder / f"{i}.{number}.mp4", 25.0, "matte", **options)
            for i, stream in enumerate(streams.streams)]


def frames_of(path: Path) -> list[np.ndarray]:
    with Reader(path) as reader:
        return list(reader)


def brightness(image: np.ndarray) -> int:
    return int(np.median(image))


def test_the_newest_frame_wins_and_the_others_are_counted(cameras: Cameras) -> None:
    with LiveStreams([cameras.address(frames=120)], reconnect=0) as streams:
        taken = []
        for (frame,) in streams:
            taken.append(brightness(frame.image))
            time.sleep(0.05)
    (stream,) = streams.streams
    assert stream.received == 120 and stream.ended and not stream.lost
    assert len(taken) + stream.dropped == stream.received
    assert len(taken) < 80 and taken == sorted(set(taken))
    assert taken[-1] == 119, "the last frame is predicted, however late the others were"


def test_streams_of_two_sizes_are_predicted_together(cameras: Cameras, runtime: Runtime, tmp_path: Path) -> None:
    sizes = ["66x90", "66x90", "48x64"]
    streams = LiveStreams([cameras.address(size, 30) for size in sizes])
    records = records_of(streams, tmp_path)
    calls: list[int] = []
    predict_live(runtime, streams, records, 5, lambda: calls.append(1))
    assert [record.frames for record in records] == [5, 5, 5] and not any(record.failed for record in records)
    assert len(calls) < 15, "no call had frames of more than one stream"
    for i, size in enumerate(sizes):
        frames = frames_of(tmp_path / f"{i}.1.mp4")
        assert len(frames) == 5 and frames[0].shape[:2] == tuple(map(int, size.split("x")))


def test_a_live_recording_can_be_steadied(cameras: Cameras, runtime: Runtime, tmp_path: Path) -> None:
    streams = LiveStreams([cameras.address("66x90", 30)])
    (record,) = records_of(streams, tmp_path, steady=True)
    predict_live(runtime, streams, [record], 5)
    assert record.failed is None and record.frames == 5 and len(frames_of(record.files[0])) == 5


def test_a_long_recording_goes_on_in_another_file(cameras: Cameras, runtime: Runtime, tmp_path: Path) -> None:
    streams = LiveStreams([cameras.address(fps=50)])
    (record,) = records_of(streams, tmp_path, seconds=0.1)
    predict_live(runtime, streams, [record], 20)  # nominally 0.4 s, less if a busy camera catches up
    assert len(record.files) > 2 and record.files[1] == tmp_path / "0.2.mp4"
    assert sum(len(frames_of(file)) for file in record.files) == record.frames == 20
    assert f"and {len(record.files) - 1} more files" in record.summary()


class Picky(Runtime):
    """A runtime that refuses one size."""

    def __init__(self, runtime: Runtime) -> None:
        vars(self).update(vars(runtime))

    def _predict(self, frames: list[np.ndarray]) -> list:
        if any(frame.shape[0] == 48 for frame in frames):
            raise BadInput("images[0]: too small")
        return super()._predict(frames)


def test_a_stream_that_is_refused_ends_alone(cameras: Cameras, runtime: Runtime, tmp_path: Path) -> None:
    streams = LiveStreams([cameras.address("48x64", 30), cameras.address("66x90", 30)])
    records = records_of(streams, tmp_path)
    predict_live(Picky(runtime), streams, records, 10)
    assert str(records[0].failed) == f"{streams.streams[0].name}: images[0]: too small"
    assert records[0].summary() == f"{streams.streams[0].name}: no frame written"
    assert records[1].failed is None and len(frames_of(tmp_path / "1.1.mp4")) == 10


def test_an_unexpected_error_leaves_files_that_play(
    cameras: Cameras, runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams = LiveStreams([cameras.address("48x64", 30), cameras.address("66x90", 30)])
    records = records_of(streams, tmp_path)
    drawn = PICTURES["matte"]

    def breaks(frame, prediction):
        if sum(record.frames for record in records) > 8:
            raise RuntimeError("a fault of ours")
        return drawn(frame, prediction)

    monkeypatch.setitem(PICTURES, "matte", breaks)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        predict_live(runtime, streams, records)
    assert sum(len(frames_of(file)) for record in records for file in record.files) == 9


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(BadInput, match="reconnect: expected a number of seconds from 0"):
        LiveStreams([], seconds)


def test_streams_of_one_name_are_told_apart_by_their_hosts() -> None:
    files = [(video_file(f"rtsp://{host}/live"), Path(), "") for host in ("a", "b")]
    assert output_stems(files) == ["a_live", "b_live"]


def test_a_stream_that_breaks_comes_back(cameras: Cameras, tmp_path: Path, tiny_bundle: Path, capsys) -> None:
    def interrupt() -> None:
        wait_for_videos(tmp_path, 1)
        cameras.stop()
        time.sleep(1)
        cameras.start()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    address = cameras.address().replace("//", "//me:secret@")
    status = main(PredictConfig(tiny_bundle, (address,), tmp_path, CPU, max_frames=30, reconnect=20))
    thread.join()
    said = " ".join(capsys.readouterr().out.split())
    assert status == 0 and "30 frames written to" in said and "opened again" in said, said
    assert re.search(r"interrupted; trying to open it again for 20 s .*back after \d", said), said
    assert "secret" not in said
    (video,) = tmp_path.glob("*.panel.mp4")
    with Reader(video) as reader:
        assert len(list(reader)) == 30
        assert max(np.diff(reader.times)) > 900, "the gap is as long in the video as it was"


def test_a_stream_that_stays_away_is_named_and_the_others_go_on(
    cameras: Cameras, tmp_path: Path, tiny_bundle: Path, capsys
) -> None:
    other = Cameras()
    other.start()
    sources = (other.address("48x64", 30), cameras.address("66x90", 30))

    def interrupt() -> None:
        wait_for_videos(tmp_path, 2)
        other.stop()

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    status = main(PredictConfig(tiny_bundle, sources, tmp_path, CPU, max_frames=60, reconnect=1))
    thread.join()
    said = " ".join(capsys.readouterr().out.split())
    assert status == 1 and "interrupted, and not back within 1 s" in said and ": lost" in said, said
    assert "60 frames written to" in said
    assert len(list(tmp_path.glob("*.panel.mp4"))) == 2


def test_every_frame_is_predicted_if_asked(cameras: Cameras, tmp_path: Path, tiny_bundle: Path, capsys) -> None:
    config = PredictConfig(tiny_bundle, (cameras.address("48x64", 500, 40),), tmp_path, CPU, every_frame=True)
    assert main(config) == 0
    assert "40 frames written to" in " ".join(capsys.readouterr().out.split())


def test_a_stream_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadInput, match="no frame received"):
        LiveStreams(["http://127.0.0.1:9/nothing"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_videos_that_play(
    cameras: Cameras, tmp_path: Path, tiny_bundle: Path, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "dpt_deploy.predict", str(tiny_bundle), cameras.address(),
               cameras.address("48x64"), "--out", str(tmp_path), "--backend", CPU]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True) as process:
        wait_for_videos(tmp_path, 2)
        os.killpg(process.pid, number)
        said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + number and "Traceback" not in said, said
    assert said.count("frames written to") == 2
    assert all(frames_of(video) for video in tmp_path.glob("*.panel.mp4"))
