"""The contenders of the latency benchmark: our backends, PyTorch, and the DAViD-style peer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from benchmarks.david_pipeline import DavidPipeline
from benchmarks.pipeline import FrameGraphPipeline, ModelGraphPipeline, Pipeline, Unavailable
from benchmarks.pytorch_pipeline import open_pytorch
from dpt_deploy import backends
from dpt_deploy.backends import Backend, SessionOptions
from dpt_deploy.backends.device import NO_GPU, compute_capability
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.manifest import Artifact, Precision

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8", "fp8")

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
    """Every graph in every precision on each registered backend; one row with the reason if it takes none of them."""
    for backend in backends.registered():
        runs: list[tuple[Artifact, Precision]] = []
        for graph in ("frame", "model"):
            for precision in PRECISIONS:
                runs += [(artifact, precision) for artifact in backend.candidates(bundle, graph, precision)]
        for artifact, precision in runs:
            yield _ours(bundle, backend, artifact, precision)
        if not runs:
            reason = str(backend.no_candidate(bundle, "frame", None))
            yield Contender(f"{backend.name} frame", "fp16", backend.device, _refuse(reason))


def _ours(bundle: Bundle, backend: Backend, artifact: Artifact, precision: Precision) -> Contender:
    def open_ours() -> Pipeline:
        if refusal := backend.unavailable():
            raise Unavailable(str(refusal))
        session = backend.open(bundle, artifact, SessionOptions(precision=precision, compile_eagerly=True))
        if artifact.graph == "frame":
            return FrameGraphPipeline(session, backend.device == "gpu")
        return ModelGraphPipeline(session, backend.device == "gpu", bundle.contract)

    name = f"{backend.name} {artifact.graph} {precision}" + ("" if artifact.graph == "frame" else ", NumPy steps")
    return Contender(name, precision, backend.device, open_ours, artifact)


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
        raise Unavailable(NO_GPU)


def _refuse(reason: str) -> Callable[[], Pipeline]:
    def refuse() -> Pipeline:
        raise Unavailable(reason)

    return refuse
