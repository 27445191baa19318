"""The peer: a pipeline like that of DAViD's published runtime, on ONNX Runtime, with the bundle's weights.

OpenCV pads the frame to a square by replicating its border and resizes it to the network's input and back; NumPy
computes the sigmoid and normalises the normals; outputs are taken by position. The bundle's network gets the bundle's
mean, std and colour order. The resize rule is not the contract's, and the maps differ accordingly.
"""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np

from benchmarks.pipeline import Maps, Pipeline, Unavailable
from dpt_deploy.backends import cuda
from dpt_deploy.backends.onnxruntime import PROVIDERS, Device, cuda_provider, preload
from dpt_deploy.core.bundle import Bundle


class DavidPipeline(Pipeline):
    """Pad, resize, run the FP32 model graph on ONNX Runtime, resize back; one frame at a time."""

    def __init__(self, bundle: Bundle, device: Device = "cpu") -> None:
        import onnxruntime

        super().__init__()
        provider: Any = PROVIDERS[device]
        if device == "cuda":
            preload(onnxruntime)
            provider = cuda_provider(cuda.current_device())
        self.contract = bundle.contract
        (artifact,) = bundle.find("onnx", graph="model", precision="fp32")
        self.session = onnxruntime.InferenceSession(str(bundle.path(artifact)), providers=[provider])
        if PROVIDERS[device] not in self.session.get_providers():
            raise Unavailable(f"ONNX Runtime could not start {PROVIDERS[device]}")

    def __call__(self, frames: np.ndarray) -> Maps:
        self.steps = {"pre": 0.0, "engine": 0.0, "post": 0.0}
        each = [self._run_one(frame) for frame in frames]
        return {name: np.stack([maps[name] for maps in each]) for name in each[0]}

    def _run_one(self, frame: np.ndarray) -> Maps:
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

        def to_frame(x: np.ndarray) -> np.ndarray:  # (h, w) or (h, w, 3) -> the frame's part of the square
            return cv2.resize(x, (side, side), interpolation=cv2.INTER_LINEAR)[top : top + h, left : left + w]

        maps: Maps = {}
        for head, value in zip(self.contract.heads, outputs, strict=True):
            if head == "normals":
                normals = to_frame(np.ascontiguousarray(value[0].transpose(1, 2, 0)))
                maps[head] = normals / np.maximum(np.linalg.norm(normals, axis=-1, keepdims=True), 1e-6)
            elif head == "alpha":
                maps[head] = to_frame(1.0 / (1.0 + np.exp(-value[0, 0])))
            else:
                maps[head] = to_frame(value[0, 0])
        done = time.perf_counter()
        for name, seconds in (("pre", prepared - started), ("engine", computed - prepared), ("post", done - computed)):
            self.steps[name] += seconds
        return maps
