"""A server that is stopped, started again, given a new model under load, and asked for a long time."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import tritonclient.grpc

from dpt_deploy.client import Client
from dpt_deploy.core.errors import BackendError, BadInput
from dpt_deploy.serve import write_repository
from tests.serve.server.conftest import options, same
from tests.serve.server.server import ROOT, Server

REQUESTS = 1200
"""Half an hour of a server that takes 1.5 s for a frame, as ONNX Runtime does for a ViT-B at 384 on two cores."""
GROWTH = 12 << 20
"""Memory that may be gained in two thirds of these [bytes]. If each left its frame behind, it would be 22 MB."""


def test_a_server_that_stops_mid_request_and_comes_back(bundle, tmp_path, frames, expected):
    write_repository(bundle, tmp_path, options("plain"))
    before = set(os.listdir("/dev/shm"))
    with Server(tmp_path, ["plain"]) as server, \
            Client(server.address("grpc"), timeout=20) as grpc, Client(server.address("http"), timeout=20) as http, \
            Client(server.address("grpc"), timeout=20, shared_memory=True) as memory:
        clients = (grpc, http, memory)
        assert all(same(client(frames[0]), expected[0]) for client in clients)
        ended: list[BaseException] = []
        answered = threading.Semaphore(0)

        def work(client: Client) -> None:
            try:
                while True:
                    assert same(client(frames[0]), expected[0])
                    answered.release()
            except BaseException as error:
                ended.append(error)

        threads = [threading.Thread(target=work, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        for _ in range(6):
            assert answered.acquire(timeout=30)
        own = set(os.listdir("/dev/shm")) - before
        assert any(name.startswith("dpt-server-") for name in own), own
        server.stop(signal.SIGKILL)
        for thread in threads:
            thread.join(60)
        assert len(ended) == 3
        assert all(isinstance(error, BackendError) and "gave no answer" in str(error) for error in ended), ended
        assert not any(client.ready() for client in clients)
        server.start()
        limit = time.monotonic() + 20
        while not all(client.ready() for client in clients) and time.monotonic() < limit:
            time.sleep(0.1)
        assert all(same(client(frames[0]), expected[0]) for client in clients)
    assert not [name for name in set(os.listdir("/dev/shm")) - before
                if name.startswith((f"dpt-{os.getpid()}-", "dpt-server-", "triton_python_backend"))]


def test_a_new_version_under_load_loses_no_request(bundle, tmp_path, frames, expected):
    write_repository(bundle, tmp_path, options("plain"))
    with Server(tmp_path, ["plain"]) as server, Client(server.address("grpc")) as client:
        stop, faults, done = threading.Event(), [], [0] * 4
        control = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}")

        def work(worker: int) -> None:
            while not stop.is_set():
                try:
                    if not same(client(frames[worker]), expected[worker]):
                        faults.append("another map")
                except Exception as error:
                    faults.append(repr(error))
                done[worker] += 1

        threads = [threading.Thread(target=work, args=(worker,)) for worker in range(4)]
        for thread in threads:
            thread.start()
        for version in (2, 3, 4):
            write_repository(bundle, tmp_path, options("plain", version=version, max_batch=1))
            control.load_model("plain")
            after = sum(done) + 12
            limit = time.monotonic() + 60
            while sum(done) < after and time.monotonic() < limit:
                time.sleep(0.05)
        stop.set()
        for thread in threads:
            thread.join()
        index = control.get_model_repository_index().models
        control.close()
        assert not faults and min(done) > 0
        assert [entry.version for entry in index if entry.state == "READY"] == ["4"]


def test_half_an_hour_of_requests_leaves_memory_flat(server, frames):
    clients = [Client(server.address("grpc"), "plain", shared_memory=True), Client(server.address("http"), "all"),
               Client(server.address("grpc"), "all", forms="smallest")]
    marks = []
    for i in range(REQUESTS):
        clients[i % 3](frames[i % len(frames)])
        if i % 50 == 7:
            with pytest.raises(BadInput):
                clients[1].run(frames[0][None, ..., :2])
        if i in (REQUESTS // 3, REQUESTS - 1):
            marks.append(server.memory())
    for client in clients:
        client.close()
    for part in ("server", "stubs"):
        grown = marks[1][part] - marks[0][part]
        print(f"{part}: {marks[0][part] >> 20} MiB after a third of the requests, {marks[1][part] >> 20} after all")
        assert grown < GROWTH, f"{part} grew by {grown >> 20} MiB in {REQUESTS - REQUESTS // 3} requests"


def test_a_numpy_that_gives_empty_outputs_is_refused_at_start(bundle, tmp_path):
    numpy2 = Path(sys.prefix) / "numpy2"
    assert numpy2.is_dir(), "make serve-test installs NumPy 2 into the folder numpy2 of its environment"
    folder = tmp_path / "first on the path"
    folder.mkdir()
    for entry in (*numpy2.iterdir(), ROOT / "dpt_deploy"):
        (folder / entry.name).symlink_to(entry)
    write_repository(bundle, tmp_path / "repository", options("plain"))
    with pytest.raises(RuntimeError, match=r"NumPy 2\S* does not work with this server's Python backend"), \
            Server(tmp_path / "repository", ["plain"], folder):
        pass

