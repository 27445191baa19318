"""Live streams: real ones on the loopback address, which break off and come back, and files at their own rate."""

from __future__ import annotations

import contextlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.predict.__main__ import PredictConfig, main
from dpt_deploy.predict.live import Live, predict_live
from dpt_deploy.predict.reader import Reader
from dpt_deploy.predict.video import Writer
from dpt_deploy.runtime import Prediction, Runtime, load

CPU = "onnxruntime-cpu"
SIZE = (66, 90)
MOST_S = 60.0  # until a test gives up


class Camera:
    """An MJPEG camera: an HTTP server whose pictures show their number as brightness, and which can be cut."""

    def __init__(self, rate: float = 20.0, port: int = 0) -> None:
        self.sent = 0
        self.cut = threading.Event()
        camera = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                with contextlib.suppress(OSError):
                    while not camera.cut.wait(1 / rate):
                        camera.sent += 1
                        picture = np.full((*SIZE, 3), 40 + camera.sent % 200, np.uint8)
                        data = cv2.imencode(".jpg", picture)[1].tobytes()
                        self.wfile.write(b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n"
                                         % (len(data), data))

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.address = f"http://127.0.0.1:{self.port}/live"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        """Cut the connections and stop listening."""
        self.cut.set()
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def camera(rate: float = 20.0, port: int = 0) -> Iterator[Camera]:
    one = Camera(rate, port)
    try:
        yield one
    finally:
        one.close()


class Counting(Runtime):
    """A loaded runtime that notes how many frames each call has, and can be slowed down."""

    def __init__(self, runtime: Runtime, seconds: float = 0.0) -> None:
        super().__init__(runtime.bundle, runtime.artifact, runtime.session, runtime.reason)
        self.calls: list[int] = []
        self.seconds = seconds

    def __call__(self, images: list[np.ndarray]) -> list[Prediction]:
        self.calls.append(len(images))
        time.sleep(self.seconds)
        return super().__call__(images)


@pytest.fixture(scope="module")
def runtime(tiny_bundle: Path) -> Iterator[Runtime]:
    with load(tiny_bundle, CPU) as loaded:
        yield loaded


def film(path: Path, frames: int, fps: float = 20.0) -> Path:
    with Writer(path, fps) as writer:
        for i in range(frames):
            writer.write(np.full((*SIZE, 3), 20 + 10 * i, np.uint8))
    return path


def frames_of(path: Path) -> int:
    with Reader(path) as reader:
        return len(list(reader))


def test_a_stream_that_is_cut_comes_back(runtime: Runtime, tmp_path: Path) -> None:
    said: list[str] = []
    first = Camera()
    live = Live([first.address], said.append, give_up=MOST_S)
    later: list[Camera] = []

    def cut(done: int) -> None:
        if done == 3 and not later:
            first.close()
            later.append(Camera(port=first.port))

    try:
        (outcome,) = predict_live(runtime, live, [tmp_path / "out.mp4"], "matte", max_frames=6, progress=cut)
    finally:
        for one in later:
            one.close()
    assert outcome.frames == frames_of(tmp_path / "out.mp4") == 6
    assert outcome.reconnections >= 1 and not outcome.lost
    assert "connection lost, trying again in 0.5 s" in said[0]
    assert any("connected again after" in line for line in said)


def test_a_stream_that_stays_away_is_given_up(runtime: Runtime, tmp_path: Path) -> None:
    said: list[str] = []
    one = Camera()
    live = Live([one.address], said.append, give_up=0.6)

    def cut(done: int) -> None:
        if done == 2:
            one.close()

    (outcome,) = predict_live(runtime, live, [tmp_path / "out.mp4"], "matte", progress=cut)
    assert outcome.lost and outcome.frames >= 2
    assert "given up after 0.6 s" in said[-1]


def test_several_streams_share_a_call_and_drop_what_is_late(runtime: Runtime, tmp_path: Path) -> None:
    slow = Counting(runtime, 0.2)
    with camera() as left, camera() as right:
        live = Live([left.address, right.address], give_up=MOST_S)
        outcomes = predict_live(slow, live, [tmp_path / "left.mp4", tmp_path / "right.mp4"], "matte", max_frames=5)
    assert [frames_of(outcome.path) for outcome in outcomes] == [5, 5]
    assert 2 in slow.calls, "one call for both streams"
    for outcome in outcomes:  # 20 frames come in a second, and the network takes five
        assert outcome.dropped >= 5 and outcome.received >= outcome.frames + outcome.dropped


def test_the_newest_frame_wins(runtime: Runtime, tmp_path: Path) -> None:
    ages: list[int] = []
    with camera() as one:
        live = Live([one.address], give_up=MOST_S)

        class Watched(Counting):
            def __call__(self, images: list[np.ndarray]) -> list[Prediction]:
                ages.append(one.sent - (round(float(images[0].mean())) - 40))
                return super().__call__(images)

        predict_live(Watched(runtime, 0.3), live, [tmp_path / "out.mp4"], "matte", max_frames=5)
    # In a queue, each call would add the six frames that come while it runs.
    assert ages[-1] <= ages[0] + 12, f"frames queue up: {ages} frames behind the camera"


def test_a_file_plays_at_its_rate(runtime: Runtime, tmp_path: Path) -> None:
    source = film(tmp_path / "film.mp4", 10)
    live = Live([str(source)])
    began = time.monotonic()
    (outcome,) = predict_live(runtime, live, [tmp_path / "out.mp4"], "matte", steady=True)
    assert time.monotonic() - began >= 9 / 20, "the last frame comes when it is due"
    assert outcome.received == 10 and outcome.frames + outcome.dropped == 10 and not outcome.lost
    assert outcome.notes == ("steadied in 1 shot",)


def test_interrupted_all_videos_are_whole(runtime: Runtime, tmp_path: Path) -> None:
    def stop(done: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with camera() as left, camera() as right:
        live = Live([left.address, right.address], give_up=MOST_S)
        outcomes = predict_live(runtime, live, [tmp_path / "a.mp4", tmp_path / "b.mp4"], "matte", progress=stop)
    assert all(outcome.interrupted for outcome in outcomes)
    assert sum(frames_of(outcome.path) for outcome in outcomes if outcome.frames) >= 4


def test_the_command_counts_for_each_stream(tiny_bundle: Path, tmp_path: Path, capsys) -> None:
    source = film(tmp_path / "film.mp4", 5)
    with camera() as one:
        config = PredictConfig(tiny_bundle, (one.address, str(source)), tmp_path / "out", CPU, live=True, steady=True,
                               max_frames=3, look="matte")
        assert main(config) == 0
    said = capsys.readouterr().out.replace("\n", " ")
    assert f"{one.address}: 3 frames written to" in said and "dropped; 0 reconnections; steadied in 1 shot" in said
    assert frames_of(tmp_path / "out" / "live.matte.mp4") == 3
    assert (tmp_path / "out" / "film.matte.mp4").is_file()


def test_what_is_not_live_is_told(tiny_bundle: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "one.png"), np.zeros((40, 40, 3), np.uint8))
    with pytest.raises(BadInput, match="--live: expected a video"):
        main(PredictConfig(tiny_bundle, (str(tmp_path / "one.png"),), tmp_path / "out", CPU, live=True))
    source = film(tmp_path / "film.mp4", 2)
    with pytest.raises(BadInput, match="received images as well"):
        main(PredictConfig(tiny_bundle, (str(tmp_path / "one.png"), str(source)), tmp_path / "out", CPU, live=True))
    with pytest.raises(BadInput, match="no frame received"):
        Live(["http://127.0.0.1:9/live"])
