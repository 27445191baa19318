"""Requests to a Triton server over gRPC or HTTP, with its errors as those of this project."""

from __future__ import annotations

import contextlib
import http.client
import importlib
import json
import re
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..core.compact import Form
from ..core.errors import BackendError, BadInput, Cause, first_line, missing_package

SCHEMES = {"grpc": ("grpc", False), "grpcs": ("grpc", True), "http": ("http", False), "https": ("http", True)}
ADDRESS = re.compile(r"(?:([a-z]+)://)?([^/\s:]+|\[[0-9a-fA-F:]+\]):([0-9]{1,5})/?")
# Maps have many megabytes; and a server that was started again is found within a second, not within two minutes.
CHANNEL = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1),
           ("grpc.initial_reconnect_backoff_ms", 100), ("grpc.min_reconnect_backoff_ms", 100),
           ("grpc.max_reconnect_backoff_ms", 1000)]


class Transport:
    """A connection to a server. Thread-safe."""

    def __init__(self, address: str, timeout: float) -> None:
        """Read the address; nothing is sent yet.

        Raises:
            BadInput: The address is none.
            MissingPackage: tritonclient is not installed.
        """
        found = ADDRESS.fullmatch(address)
        scheme = (found[1] or "grpc") if found else ""
        if scheme not in SCHEMES:
            raise BadInput(f"address: expected HOST:PORT, grpc://HOST:PORT or http://HOST:PORT, received "
                           f"{address!r:.200}. Triton's ports are 8001 for gRPC and 8000 for HTTP by "
                           "default.")
        self.address = address
        self.timeout = timeout
        self._kind, self._secure = SCHEMES[scheme]
        self._host = f"{found[2]}:{found[3]}"
        try:
            self._triton = importlib.import_module(f"tritonclient.{self._kind}")
            utils = importlib.import_module("tritonclient.utils")
        except (ImportError, RuntimeError) as error:  # a RuntimeError names the missing extra of tritonclient
            raise missing_package("tritonclient", "client", "talk to a Triton server") from error
        self.exception: type[Exception] = utils.InferenceServerException
        """What tritonclient raises."""
        self._local = threading.local()
        self._lock = threading.Lock()
        self._opened: list[Any] = []

    @property
    def _client(self) -> Any:
        """tritonclient's client: one for all threads over gRPC, one for each over HTTP, which is not thread-safe."""
        if self._kind == "grpc":
            with self._lock:
                if not self._opened:
                    self._opened.append(
                        self._triton.InferenceServerClient(self._host, ssl=self._secure, channel_args=CHANNEL))
                return self._opened[0]
        client = getattr(self._local, "client", None)
        if client is None:
            client = self._triton.InferenceServerClient(
                self._host, ssl=self._secure, connection_timeout=self.timeout, network_timeout=self.timeout)
            self._local.client = client
            with self._lock:
                self._opened.append(client)
        return client

    def ready(self, model: str = "") -> bool:
        """Whether the server, or one of its models, takes requests. False if nothing answers."""
        try:
            with self.errors():
                return self._client.is_model_ready(model) if model else self._client.is_server_ready()
        except (BackendError, BadInput):
            return False

    def models(self) -> list[str]:
        """The names of the models that are ready."""
        with self.errors():
            index = self._client.get_model_repository_index()
        entries = index if isinstance(index, list) else [
            {"name": entry.name, "state": entry.state} for entry in index.models]
        return sorted({entry["name"] for entry in entries if entry.get("state") == "READY"})

    def config(self, model: str) -> dict[str, Any]:
        """The configuration of a model."""
        with self.errors():
            if self._kind == "http":
                return self._client.get_model_config(model)
            return self._client.get_model_config(model, as_json=True, client_timeout=self.timeout)["config"]

    def infer(self, model: str, frames: np.ndarray, forms: list[Form]) -> dict[str, np.ndarray]:
        """Maps by head, in the forms that were asked for; the frames and the maps travel in the messages.

        Args:
            model: The model's name.
            frames: uint8 (N, H, W, 3) RGB.
            forms: The outputs to request.
        """
        with self.errors():
            tensor = self.input(frames.shape)
            tensor.set_data_from_numpy(frames)
            result = self.call(model, tensor, [self._triton.InferRequestedOutput(form.output) for form in forms])
        maps = {}
        for form in forms:
            try:
                maps[form.head] = result.as_numpy(form.output)
            except ValueError:  # fewer bytes than the shape needs
                maps[form.head] = None
        return maps

    def input(self, shape: tuple[int, ...]) -> Any:
        """tritonclient's description of the input."""
        return self._triton.InferInput("frame", list(shape), "UINT8")

    def output(self, name: str) -> Any:
        """tritonclient's description of a requested output."""
        return self._triton.InferRequestedOutput(name)

    def call(self, model: str, tensor: Any, outputs: list[Any]) -> Any:
        """Send a request, and wait for the answer. Raises what tritonclient raises."""
        options = {"client_timeout": self.timeout} if self._kind == "grpc" else {}
        return self._client.infer(model, [tensor], outputs=outputs, **options)

    def register(self, name: str, key: str, size: int) -> None:
        """Let the server open a region of shared memory. Raises what tritonclient raises."""
        self._client.register_system_shared_memory(name, key, size)

    def unregister(self, name: str) -> None:
        """Let the server close a region of shared memory."""
        self._client.unregister_system_shared_memory(name)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Around calls: turns the exceptions of tritonclient and of the connection into those of this project."""
        try:
            yield
        except self.exception as error:
            raise self.translated(error) from error
        except (OSError, EOFError, http.client.HTTPException) as error:
            raise self._no_answer(first_line(error)) from error
        except Exception as error:
            # geventhttpclient and gevent have exceptions of their own for connections that end.
            if type(error).__module__.partition(".")[0] in ("geventhttpclient", "gevent"):
                raise self._no_answer(first_line(error)) from error
            raise

    def translated(self, error: Any) -> BadInput | BackendError:
        """An exception of tritonclient as one of this project."""
        status, message = str(error.status() or ""), _message(error)
        lowered = message.lower()
        if "unknown model" in lowered or ("not found" in lowered and "model" in lowered):
            return BackendError(f"{self.address}: {message}. Ask for a model that is ready, or load it.",
                                Cause.NO_ARTIFACT, "triton")
        if any(word in status for word in ("UNAVAILABLE", "DEADLINE", "CANCELLED", "503", "499")) or \
                "connect" in lowered or "timed out" in lowered or "deadline" in lowered:
            return self._no_answer(message)
        if "INVALID_ARGUMENT" in status or status.startswith("4"):
            return BadInput(f"{self.address} refused the request: {message}.")
        return BackendError(f"{self.address}: {message}.", backend="triton")

    def _no_answer(self, message: str) -> BackendError:
        return BackendError(f"{self.address} gave no answer: {message}. Check that the server runs and is ready, and "
                            "that the port is that of this protocol.", backend="triton")

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            opened, self._opened = self._opened, []
        for client in opened:
            with contextlib.suppress(Exception):  # connections of other threads may be gone
                client.close()


def _message(error: Any) -> str:
    """The first line of a server's message, without what stands around it."""
    text = str(error.message() or error)
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = str(json.loads(text)["error"])
    text = re.sub(r"^\[request id: [^\]]*\] *", "", text).strip()
    return (text.splitlines() or ["no message"])[0].rstrip(".")


def check_map(form: Form, value: np.ndarray | None, frames: tuple[int, ...], address: str) -> np.ndarray:
    """The float32 map that an answer stands for. Raises `BackendError` if the server sent something else."""
    shape = (*frames[:3], form.channels) if form.channels > 1 else frames[:3]
    if value is None or value.dtype != form.dtype or value.shape != shape:
        received = "fewer bytes" if value is None else f"{value.dtype} {list(value.shape)}"
        raise BackendError(f"{address}: expected {form.output} as {form.dtype} {list(shape)}, received {received}. "
                           "Look into the server's log; NumPy 2 in an old Triton gives empty outputs.",
                           backend="triton")
    return form.decode(value)
