"""A loaded contender, from frames to full-size maps; and our own: a bundle's graph on one of our backends."""

from __future__ import annotations

import time

import numpy as np

from benchmarks import cuda_timing
from dpt_deploy.backends.session import Session
from dpt_deploy.core.contract import Contract
from dpt_deploy.runtime.image import postprocess, preprocess

Maps = dict[str, np.ndarray]


class Unavailable(Exception):
    """A contender cannot run on this machine. The message is the reason."""


class Pipeline:
    """Frames in host memory in, full-size maps in host memory out."""

    note: str = ""
    """How it computes, as far as that is known after a call."""

    def __init__(self) -> None:
        self.steps: dict[str, float] = {}
        """Duration of each step of the last call [s]; empty if the steps cannot be told apart within a call."""

    def __call__(self, frames: np.ndarray) -> Maps:
        """uint8 (N, H, W, 3) RGB to the maps of a frame graph."""
        raise NotImplementedError

    def repeat_steps(self, frames: np.ndarray) -> dict[str, list[float]]:
        """p50, p90 and p99 [ms] of each step, each repeated on its own; empty if that is not possible."""
        return {}

    def close(self) -> None:
        """Release what the pipeline holds."""


class FrameGraphPipeline(Pipeline):
    """A frame graph: pre- and post-processing are part of the graph."""

    def __init__(self, session: Session, on_gpu: bool) -> None:
        super().__init__()
        self.session, self.on_gpu = session, on_gpu
        (self.input,) = session.inputs

    @property
    def note(self) -> str:
        return self.session.note

    def __call__(self, frames: np.ndarray) -> Maps:
        return self.session.run({self.input: frames})

    def repeat_steps(self, frames: np.ndarray) -> dict[str, list[float]]:
        return cuda_timing.time_steps(self.session, {self.input: frames}) if self.on_gpu else {}

    def close(self) -> None:
        self.session.close()


class ModelGraphPipeline(FrameGraphPipeline):
    """A model graph, with pre- and post-processing in NumPy."""

    def __init__(self, session: Session, on_gpu: bool, contract: Contract) -> None:
        super().__init__(session, on_gpu)
        self.contract = contract

    def __call__(self, frames: np.ndarray) -> Maps:
        started = time.perf_counter()
        image = preprocess(frames, self.contract)
        prepared = time.perf_counter()
        outputs = self.session.run({self.input: image})
        computed = time.perf_counter()
        maps = postprocess(outputs, self.contract, frames.shape[1:3])
        self.steps = {"pre": prepared - started, "engine": computed - prepared, "post": time.perf_counter() - computed}
        return maps

    def repeat_steps(self, frames: np.ndarray) -> dict[str, list[float]]:
        return super().repeat_steps(preprocess(frames, self.contract))
