"""Frames and maps in system shared memory: a server on this machine reads and writes them without a copy over a socket.

A region belongs to one request at a time. Regions are kept for the next request and grow as needed.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import threading
from typing import Any

import numpy as np

from ..core.compact import Form
from ..core.errors import BackendError
from .transport import Transport

LOST = ("unable to find", "not found", "not registered")


class Region:
    """A region of shared memory that the server has opened."""

    def __init__(self, transport: Transport, size: int) -> None:
        self._memory = importlib.import_module("tritonclient.utils.shared_memory")
        self._transport = transport
        self.size = size
        self.name = f"dpt-{os.getpid()}-{secrets.token_hex(6)}"
        try:
            self.handle = self._memory.create_shared_memory_region(self.name, f"/{self.name}", size, create_only=True)
        except self._memory.SharedMemoryException as error:
            raise BackendError(f"shared memory: expected room for {size} bytes in /dev/shm ({error}). Free some, or "
                               "leave out shared_memory.", backend="triton") from error
        try:
            self.register()
        except BaseException:
            self.close()
            raise

    def register(self) -> None:
        """Let the server open it: at first, and again after the server was started again."""
        try:
            self._transport.register(self.name, f"/{self.name}", self.size)
        except self._transport.exception as error:
            translated = self._transport.translated(error)
            if isinstance(translated, BackendError) and "gave no answer" in str(translated):
                raise translated from error
            raise BackendError(f"{self._transport.address} cannot open shared memory of this machine ({translated}) "
                               "Leave out shared_memory, or run the server on this machine; a container needs "
                               "--ipc=host.", backend="triton") from error

    def write(self, frames: np.ndarray) -> None:
        """Copy an array to the start of the region."""
        self._memory.set_shared_memory_region(self.handle, [frames])

    def read(self, form: Form, shape: tuple[int, ...], offset: int) -> np.ndarray:
        """A view of a map in the region."""
        return self._memory.get_contents_as_numpy(self.handle, np.dtype(form.dtype), shape, offset)

    def close(self) -> None:
        """Close it here and in the server."""
        with contextlib.suppress(Exception):  # the server may be gone
            self._transport.unregister(self.name)
        with contextlib.suppress(Exception):
            self._memory.destroy_shared_memory_region(self.handle)


class SharedMemory:
    """Pairs of regions for the requests of one client. Thread-safe."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._free: list[tuple[Region, Region]] = []
        self._lock = threading.Lock()

    def infer(self, model: str, frames: np.ndarray, forms: list[Form]) -> dict[str, np.ndarray]:
        """As `Transport.infer`. The maps are copies."""
        shapes = {form: (*frames.shape[:3], form.channels) if form.channels > 1 else frames.shape[:3] for form in forms}
        sizes = {form: int(np.prod(shape)) * np.dtype(form.dtype).itemsize for form, shape in shapes.items()}
        pair = self._pair(frames.nbytes, sum(sizes.values()))
        try:
            frames_region, maps_region = pair
            frames_region.write(frames)
            tensor = self._transport.input(frames.shape)
            tensor.set_shared_memory(frames_region.name, frames.nbytes)
            outputs, offsets, offset = [], {}, 0
            for form in forms:
                output = self._transport.output(form.output)
                output.set_shared_memory(maps_region.name, sizes[form], offset)
                outputs.append(output)
                offsets[form], offset = offset, offset + sizes[form]
            self._call(model, tensor, outputs, pair)
            maps = {form.head: np.array(maps_region.read(form, shapes[form], offsets[form])) for form in forms}
        except BaseException:
            # The server may still write into it.
            for region in pair:
                region.close()
            raise
        with self._lock:
            self._free.append(pair)
        return maps

    def _call(self, model: str, tensor: Any, outputs: list[Any], pair: tuple[Region, Region]) -> None:
        with self._transport.errors():
            try:
                self._transport.call(model, tensor, outputs)
            except self._transport.exception as error:
                text = str(error).lower()
                if "shared memory" not in text or not any(word in text for word in LOST):
                    raise
                for region in pair:  # the server was started again
                    region.register()
                self._transport.call(model, tensor, outputs)

    def _pair(self, frames: int, maps: int) -> tuple[Region, Region]:
        with self._lock:
            pair = self._free.pop() if self._free else None
        if pair is not None and pair[0].size >= frames and pair[1].size >= maps:
            return pair
        sizes = (frames, maps)
        if pair is not None:
            sizes = (max(frames, pair[0].size), max(maps, pair[1].size))
            for region in pair:
                region.close()
        first = Region(self._transport, sizes[0])
        try:
            return first, Region(self._transport, sizes[1])
        except BaseException:
            first.close()
            raise

    def close(self) -> None:
        """Close all regions. Call it when no request is under way."""
        with self._lock:
            pairs, self._free = self._free, []
        for pair in pairs:
            for region in pair:
                region.close()
