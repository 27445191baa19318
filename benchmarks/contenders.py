"""The contenders of the latency benchmark: our backends, PyTorch, and the DAViD-style peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.david_pipeline import DavidPipeline
from benchmarks.pipeline import FrameGraphPipeline, ModelGraphPipeline, Pipeline, Unavailable
from benchmarks.pytorch_pipeline import open_pytorch
from dpt_deploy.backends.device import compute_capability
from dpt_deploy.core.bundle import Artifact, Bundle
from dpt_deploy.runtime import open_session


@dataclass
class Contender:
    """One row of the results."""

    name: str
    precision: str
    """The arithmetic. It selects the parity budget."""
    device: Literal["cpu", "gpu"]
    open: Callable[[], Pipeline]
    """Loads the contender. Raises `Unavailable` or another error if it cannot run here."""
    artifact: Artifact | None = None
    role: Literal["", "peer", "compiled"] = ""
    """Rows are compared with the peer, and with torch.compile."""


def contenders(bundle: Bundle) -> list[Contender]:
    """All rows under distinct names, whether they can run on this machine or not."""
    found = [*_our_backends(bundle), *_pytorch(bundle), *_peers(bundle)]
    names: set[str] = set()
    for contender in found:
        if contender.name in names and contender.artifact:  # two engines of one graph, such as one refittable
            contender.name += f", {contender.artifact.file}"
        names.add(contender.name)
    return found


def _our_backends(bundle: Bundle) -> Iterator[Contender]:
    """Every artifact of the bundle on every backend that takes it."""
    for graph in ("frame", "model"):
        for artifact in bundle.find("onnx", graph=graph):
            yield _ours(bundle, artifact, "onnxruntime-cpu")
            yield _ours(bundle, artifact, "openvino")
            if artifact.precision == "fp32":
                yield _ours(bundle, artifact, "openvino", "bf16")
            yield _ours(bundle, artifact, "onnxruntime-cuda")
        for artifact in bundle.find("engine", graph=graph):
            yield _ours(bundle, artifact, artifact.details["builder"])
        if not bundle.find("engine", graph=graph, builder="tensorrt"):
            yield Contender(f"tensorrt {graph} fp16", "fp16", "gpu", _refuse(
                f"the bundle has no such engine. On the GPU, run: dpt build {bundle.folder}"))


def _ours(bundle: Bundle, artifact: Artifact, backend: str, precision: str | None = None) -> Contender:
    arithmetic = precision or artifact.precision
    if backend == "onnxruntime-cpu" and arithmetic != "fp32":
        arithmetic = "fp16"  # it computes in FP32, but the weights are FP16 and so is the budget
    on_gpu = backend not in ("openvino", "onnxruntime-cpu")

    def open_ours() -> Pipeline:
        if on_gpu:
            _require_gpu()
        session = open_session(bundle, artifact, backend, computes=precision)
        if artifact.graph == "frame":
            return FrameGraphPipeline(session, on_gpu)
        return ModelGraphPipeline(session, on_gpu, bundle.contract)

    name = f"{backend} {artifact.graph} {arithmetic}" + ("" if artifact.graph == "frame" else ", NumPy steps")
    return Contender(name, arithmetic, "gpu" if on_gpu else "cpu", open_ours, artifact)


def _pytorch(bundle: Bundle) -> Iterator[Contender]:
    yield Contender("PyTorch eager fp32 cpu", "fp32", "cpu", lambda: open_pytorch(bundle, "fp32", "cpu"))
    yield Contender("PyTorch eager fp32 cuda", "fp32", "gpu", lambda: open_pytorch(bundle, "fp32", "cuda"))
    yield Contender("PyTorch eager fp16 cuda", "fp16", "gpu", lambda: open_pytorch(bundle, "fp16", "cuda"))
    yield Contender("torch.compile, CUDA graphs fp16 cuda", "fp16", "gpu",
                    lambda: open_pytorch(bundle, "fp16", "cuda", compiled=True), role="compiled")


def _peers(bundle: Bundle) -> Iterator[Contender]:
    def open_on_gpu() -> Pipeline:
        _require_gpu()
        return DavidPipeline(bundle, "cuda")

    name = "DAViD-style pipeline, ONNX Runtime"
    yield Contender(f"{name} cpu", "fp32", "cpu", lambda: DavidPipeline(bundle, "cpu"), role="peer")
    yield Contender(f"{name} cuda", "fp32", "gpu", open_on_gpu, role="peer")


def _require_gpu() -> None:
    if compute_capability() is None:
        raise Unavailable("no GPU is visible here")


def _refuse(reason: str) -> Callable[[], Pipeline]:
    def refuse() -> Pipeline:
        raise Unavailable(reason)

    return refuse
