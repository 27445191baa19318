"""The peer: a pipeline as DAViD's published runtime documents it, around ONNX Runtime, on the same weights.

OpenCV pads the frame to a square by repeating its edge, resizes it to the network's input and back; NumPy does
sigmoid and the length of the normals; outputs are taken by position. The network is this bundle's, so it gets this
bundle's mean, std and colour order. Its maps differ from the contract's (another resize rule), which parity shows.
"""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np

from dpt_deploy.backends import cuda
from dpt_deploy.backends.onnxruntime import PROVIDERS, Device, cuda_provider, preload
from dpt_deploy.core.bundle import Bundle


class SquarePipeline:
    """Frame in, full-size maps out, with the seconds of its three steps in `parts`."""

    def __init__(self, bundle: Bundle, device: Device = "cpu", precision: str = "fp32") -> None:
        import onnxruntime

        provider: Any = PROVIDERS[device]
        if device == "cuda":
            preload(onnxruntime)
            provider = cuda_provider(cuda.current_device())
        self.contract = bundle.contract
        (artifact,) = bundle.find("onnx", graph="model", precision=precision)
        self.session = onnxruntime.InferenceSession(str(bundle.path(artifact)), providers=[provider])
        if PROVIDERS[device] not in self.session.get_providers():
            raise RuntimeError(f"{PROVIDERS[device]} is not active")
        self.parts: dict[str, float] = {}

    def __call__(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """uint8 (N, H, W, 3) RGB -> the maps of a frame graph, one frame after the other."""
        self.parts = {"pre": 0.0, "engine": 0.0, "post": 0.0}
        single = [self._one(frame) for frame in frames]
        return {name: np.stack([maps[name] for maps in single]) for name in single[0]}

    def _one(self, frame: np.ndarray) -> dict[str, np.ndarray]:
        h, w = frame.shape[:2]
        started = time.perf_counter()
        side = max(h, w)
        top, left = (side - h) // 2, (side - w) // 2
        square = cv2.copyMakeBorder(frame, top, side - h - top, left, side - w - left, cv2.BORDER_REPLICATE)
        small = cv2.resize(square, self.contract.input_size[::-1], interpolation=cv2.INTER_LINEAR)
        x = (small.astype(np.float32) / 255.0 - np.float32(self.contract.mean)) / np.float32(self.contract.std)
        image = np.ascontiguousarray(x.transpose(2, 0, 1)[None])  # (1, 3, h, w)
        prepared = time.perf_counter()
        outputs = self.session.run(None, {"image": image})
        computed = time.perf_counter()

        def back(x: np.ndarray) -> np.ndarray:  # (h, w) or (h, w, 3) -> the frame's part of the square
            return cv2.resize(x, (side, side), interpolation=cv2.INTER_LINEAR)[top : top + h, left : left + w]

        maps: dict[str, Any] = {}
        for head, value in zip(self.contract.heads, outputs, strict=True):  # by position
            if head == "normals":
                normals = back(np.ascontiguousarray(value[0].transpose(1, 2, 0)))
                maps[head] = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
            elif head == "alpha":
                maps[head] = back(1.0 / (1.0 + np.exp(-value[0, 0])))
            else:
                maps[head] = back(value[0, 0])
        done = time.perf_counter()
        for name, seconds in (("pre", prepared - started), ("engine", computed - prepared), ("post", done - computed)):
            self.parts[name] += seconds
        return maps
