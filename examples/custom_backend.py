"""Add a backend: one class and one registration.

    python examples/custom_backend.py engines/best_model

The class below runs FP32 graphs on ONNX Runtime with one thread. Once registered, `load` takes it, parity judges it,
and the doctor lists it, with no other code changed. CONTRIBUTING.md says how to add a backend to the project itself.
"""

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

import dpt_deploy
from dpt_deploy import Bundle, backends, judge
from dpt_deploy.backends import Backend, Refusal, Session, SessionOptions
from dpt_deploy.cli import exit_on_error
from dpt_deploy.core.contract import Graph
from dpt_deploy.core.errors import Cause
from dpt_deploy.core.manifest import Artifact, Precision


class FrugalSession(Session):
    """One graph on one thread. `Session.run` has checked names, types and shapes before `_run` is called."""

    backend = "frugal"
    note = "with one thread"

    def __init__(self, bundle: Bundle, artifact: Artifact) -> None:
        import onnxruntime

        super().__init__(bundle.contract, artifact.graph)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # `path` compares the file with its hash in the manifest.
        self._session = onnxruntime.InferenceSession(str(bundle.path(artifact)), options)

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, np.ndarray]:
        return dict(zip(outputs, self._session.run(outputs, dict(inputs)), strict=True))


class Frugal(Backend):
    name = "frugal"
    title = "Frugal"
    runs = "FP32 graphs, with one thread"

    def unavailable(self) -> Refusal | None:
        try:
            import onnxruntime  # noqa: F401
        except ImportError:
            return Refusal(Cause.NOT_INSTALLED, "ONNX Runtime is not installed")
        return None

    def candidates(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> list[Artifact]:
        return bundle.find("onnx", graph=graph, precision="fp32") if precision in (None, "fp32") else []

    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        return FrugalSession(bundle, artifact)


def main(folder: str) -> int:
    backends.register(Frugal())
    with dpt_deploy.load(folder, "frugal") as runtime:
        print(runtime.reason)
    report = judge(Bundle.open(folder)).report
    (stage,) = [stage for stage in report.stages if stage.id.backend == "frugal"]
    print(f"{stage.name}: {stage.status}")
    return 0 if stage.passed else 1


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/custom_backend.py BUNDLE")
    with exit_on_error():
        sys.exit(main(sys.argv[1]))
