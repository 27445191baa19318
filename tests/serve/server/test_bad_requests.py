"""Each bad request gets one sentence and the right status; the server goes on, and so do the others."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from dpt_deploy.client import Client
from dpt_deploy.core.errors import BackendError, BadInput
from dpt_deploy.core.scene import scene
from tests.serve.server.conftest import ADDRESSES, MAX_PIXELS, same

PIXELS = {
    "too large": (np.zeros((1, 300, 201, 3), np.uint8), f"at most {MAX_PIXELS} pixels .*received 1x300x201"),
    "too large together": (np.zeros((5, 120, 120, 3), np.uint8), "received 5x120x120"),
    "too many": (np.zeros((9, 8, 8, 3), np.uint8), "batch-size must be <= 8"),
    "four channels": (np.zeros((1, 96, 128, 4), np.uint8), r"Expected \[-1,-1,-1,3\], got \[1,96,128,4\]"),
    "floats": (np.zeros((1, 96, 128, 3), np.float32), "'FP32'.*expects 'UINT8'"),
    "empty": (np.zeros((1, 0, 128, 3), np.uint8), "expected uint8 RGB"),
    "no batch": (np.zeros((8, 128, 3), np.uint8), "unexpected shape"),
}


def ask(server, kind, frames, output="depth"):
    """A request that this project's client would not send."""
    module = {"grpc": tritonclient.grpc, "http": tritonclient.http}[kind]
    client = module.InferenceServerClient(server.address(kind).removeprefix(f"{kind}://"))
    tensor = module.InferInput("frame", list(frames.shape), np_to_triton_dtype(frames.dtype))
    tensor.set_data_from_numpy(frames)
    try:
        return client.infer("plain", [tensor], outputs=[module.InferRequestedOutput(output)])
    finally:
        client.close()


@pytest.mark.parametrize("kind", ADDRESSES)
@pytest.mark.parametrize("what", PIXELS)
def test_a_bad_request_is_refused_and_the_next_one_is_answered(what, kind, server, frames, expected):
    bad, message = PIXELS[what]
    with pytest.raises(InferenceServerException, match=message) as caught:
        ask(server, kind, bad)
    assert caught.value.status() == {"grpc": "StatusCode.INVALID_ARGUMENT", "http": "400"}[kind]
    assert np.array_equal(ask(server, kind, frames[0][None]).as_numpy("depth")[0], expected[0].depth)


def test_an_output_that_does_not_exist(server, frames):
    with pytest.raises(InferenceServerException, match="depht") as caught:
        ask(server, "grpc", frames[0][None], "depht")
    assert caught.value.status() in ("StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")


def test_one_bad_request_does_not_fail_those_that_run_with_it(server, frames, expected):
    """Bad and good requests of one size come at once, so that some share an execution."""
    results: dict[int, object] = {}
    large = scene(300, 201, 1)[None]

    def work(i: int) -> None:
        try:
            results[i] = ask(server, "grpc", large if i % 3 == 0 else frames[0][None])
        except InferenceServerException as error:
            results[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(18)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, result in results.items():
        if i % 3 == 0:
            assert "at most" in str(result)
        else:
            assert np.allclose(result.as_numpy("depth")[0], expected[0].depth, rtol=1e-5)
    assert len(results) == 18


@pytest.mark.parametrize("kind", ADDRESSES)
def test_the_client_says_what_is_wrong(kind, server, frames, expected):
    with Client(server.address(kind), "plain") as client:
        with pytest.raises(BadInput, match=f"at most {MAX_PIXELS} pixels in a request, received 1x300x201"):
            client(scene(300, 201, 1))
        with pytest.raises(BadInput, match="expected uint8 RGB"):
            client(np.zeros((96, 128, 3), np.float32))
        with pytest.raises(BadInput, match="heads: expected names among depth, normals, alpha"):
            client(frames[0], heads=["colour"])
        assert same(client(frames[0]), expected[0])
    with pytest.raises(BackendError, match="closed"):
        client(frames[0])
    with pytest.raises(BadInput, match="gives depth as float32, not as float16"):
        Client(server.address(kind), "plain", forms={"depth": "float16"})
    with pytest.raises(BackendError, match=r"unknown model.*nope"):
        Client(server.address(kind), "nope")
    with pytest.raises(BadInput, match="one model that dpt triton wrote, received all, canonical, plain, short"):
        Client(server.address(kind))


def test_a_port_of_the_other_protocol_or_none_gives_a_sentence(server):
    for address in (f"http://127.0.0.1:{server.grpc_port}", f"grpc://127.0.0.1:{server.http_port}", "127.0.0.1:1",
                    "http://127.0.0.1:1"):
        with pytest.raises(BackendError, match="gave no answer"):
            Client(address, "plain", timeout=5)


def test_a_full_queue_is_unavailable_and_not_a_wrong_answer(server, frames, expected):
    """The client says so; whoever asked may ask again."""
    results: list[object] = []

    def work() -> None:
        try:
            results.append(client(frames[0]))
        except BackendError as error:
            results.append(error)

    with Client(server.address("grpc"), "short") as client:
        threads = [threading.Thread(target=work) for _ in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [one for one in results if isinstance(one, BackendError)]
        assert len(results) == 24 and refused and all("queue" in str(one) for one in refused)
        assert all(same(one, expected[0]) for one in results if not isinstance(one, BackendError))
        assert same(client(frames[0]), expected[0])
