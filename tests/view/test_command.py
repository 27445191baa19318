"""`dpt view` as a process: it starts, answers, ends cleanly, and says in one sentence why it cannot start."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.view.__main__ import listen
from tests.tiny import photo
from tests.view.conftest import ROOT, served


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-W", "error", "-m", "dpt_deploy", "view", *arguments], cwd=ROOT,
                          capture_output=True, text=True, timeout=120)


def raw_socket(url: str) -> socket.socket:
    return socket.create_connection(("127.0.0.1", int(url.split(":")[2].strip("/"))), timeout=20)


def received(raw: socket.socket) -> bytes:
    """All that still comes."""
    found = b""
    with contextlib.suppress(OSError):
        while part := raw.recv(65536):
            found += part
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_it_answers_and_a_signal_ends_it_cleanly(tiny_bundle: Path, number: int, status: int) -> None:
    with served(tiny_bundle, "--max-megabytes", "1") as page:
        assert page.url.startswith("http://127.0.0.1:")
        data = cv2.imencode(".png", photo(40, 50))[1].tobytes()
        with httpx.Client(base_url=page.url, headers={"Content-Type": "image/png"}) as client:
            assert "<title>dpt view</title>" in client.get("/").text
            assert client.post("/api/predict", content=data).content[:4] == b"DPT1"
            # Refused from its headers: the server does not wait for the body, and goes on.
            with raw_socket(page.url) as raw:
                raw.sendall(b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
                            b"Content-Length: 99000000\r\n\r\n")
                assert raw.recv(4096).startswith(b"HTTP/1.1 413")
            # Someone leaves in the middle of an upload.
            with raw_socket(page.url) as raw:
                raw.sendall(b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
                            b"Content-Length: 9000\r\n\r\nabc")
            assert client.post("/api/predict", content=data).status_code == 200
        assert page.end(number) == (status, "The page has ended.\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_does_not_wait_for_requests(tiny_bundle: Path, number: int) -> None:
    """One is being sent, one computes, and one waits for it."""
    large, small = (cv2.imencode(".png", np.zeros((side, side, 3), np.uint8))[1].tobytes() for side in (7000, 9))
    with served(tiny_bundle, "--backend", "onnxruntime-cpu") as page, contextlib.ExitStack() as opened:
        sockets = []
        for path, body, length in (("predict", large[:-9], len(large)), ("download/maps.exr", large, len(large)),
                                   ("predict", small, len(small))):
            sockets.append(opened.enter_context(raw_socket(page.url)))
            sockets[-1].sendall(b"POST /api/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
                                b"Content-Length: %d\r\n\r\n" % (path.encode(), length) + body)
        time.sleep(1)  # they are on their way
        status, printed = page.end(number)
        assert (status, printed) == (128 + number, "The page has ended.\n")
        answers = [received(one) for one in sockets]
    assert answers[1][:12] in (b"HTTP/1.1 503", b""), "it was computed to its end"


def test_a_port_that_is_taken_and_an_address_of_another_machine_are_errors() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for host, port in (("127.0.0.1", taken.getsockname()[1]), ("192.0.2.1", 0), ("no.such.invalid", "auto")):
            with pytest.raises(BadInput, match=rf"^cannot listen on {host}, port .*--port, such as 0"):
                listen(host, port)


def test_the_usual_port_gives_way_to_a_free_one_only_if_none_is_asked_for() -> None:
    with listen("127.0.0.1", "auto") as first, listen("127.0.0.1", "auto") as second:
        assert first.getsockname()[1] != second.getsockname()[1]


def test_a_second_model_that_is_the_first_is_an_error(tiny_bundle: Path) -> None:
    done = run(str(tiny_bundle), "--no-browser", "--port", "0", "--backend", "onnxruntime-cpu", "--precision", "fp16",
               "--compare-precision", "fp16")
    assert done.returncode == 2 and "expected another precision" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [("nothing",), ("nothing", "--port", "99999")])
def test_bad_input_is_one_message(arguments: tuple[str, ...]) -> None:
    done = run(*arguments, "--no-browser")
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stderr
