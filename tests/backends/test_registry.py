"""A backend is one class and one registration: everything that runs, judges, lists or times bundles finds it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpt_deploy
from dpt_deploy import backends
from dpt_deploy.backends import Backend, Refusal, Session, SessionOptions
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Graph
from dpt_deploy.core.errors import BackendError, BadInput, Cause
from dpt_deploy.core.manifest import Artifact, Precision
from dpt_deploy.doctor import check_machine
from dpt_deploy.parity.judge import judge
from tests.tiny import open_session, photo


class ToySession(Session):
    """Lets ONNX Runtime compute, and scales depth."""

    backend = "toy"

    def __init__(self, bundle: Bundle, artifact: Artifact, depth_factor: float) -> None:
        super().__init__(bundle.contract, artifact.graph)
        self._inner = open_session(bundle, artifact, "onnxruntime-cpu")
        self._depth_factor = np.float32(depth_factor)

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, np.ndarray]:
        maps = self._inner.run(inputs, outputs)
        return maps | ({"depth": maps["depth"] * self._depth_factor} if "depth" in maps else {})


class ToyBackend(Backend):
    name = "toy"
    title = "Toy"
    runs = "FP32 graphs, in a test"

    def __init__(self, depth_factor: float = 1.0, missing: bool = False) -> None:
        self.depth_factor, self.missing = depth_factor, missing

    def unavailable(self) -> Refusal | None:
        return Refusal(Cause.NOT_INSTALLED, "the toy box is empty") if self.missing else None

    def candidates(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> list[Artifact]:
        return bundle.find("onnx", graph=graph, precision="fp32") if precision in (None, "fp32") else []

    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        if self.missing:
            raise BackendError("the toy box is empty", Cause.NOT_INSTALLED)
        return ToySession(bundle, artifact, self.depth_factor)


@pytest.fixture
def register() -> Iterator[Any]:
    """Registers a backend ahead of all others while the test runs."""
    def add(backend: Backend) -> Backend:
        backends.register(backend, before=backends.names()[0])
        return backend

    yield add
    if "toy" in backends.names():
        backends.unregister("toy")


def stage_of(report: Any) -> Any:
    (stage,) = [stage for stage in report.stages if stage.id.backend == "toy"]
    return stage


def test_it_is_loaded_as_the_preferred_one_and_by_name(tiny_bundle: Path, register: Any) -> None:
    register(ToyBackend())
    frame = photo(64, 80)
    with dpt_deploy.load(tiny_bundle) as first, dpt_deploy.load(tiny_bundle, "toy") as named, \
            dpt_deploy.load(tiny_bundle, "onnxruntime-cpu") as other:
        assert first.backend == named.backend == "toy" and "as requested" in named.reason
        np.testing.assert_array_equal(first(frame).depth, other(frame).depth)


def test_one_that_is_not_installed_is_passed_over_with_its_reason(tiny_bundle: Path, register: Any) -> None:
    register(ToyBackend(missing=True))
    with dpt_deploy.load(tiny_bundle) as loaded:
        assert loaded.backend != "toy" and "not toy: the toy box is empty" in loaded.reason
    with pytest.raises(BackendError, match="the toy box is empty"):
        dpt_deploy.load(tiny_bundle, "toy")


@pytest.mark.parametrize(("backend", "status"), [
    (ToyBackend(), "passed"), (ToyBackend(depth_factor=1.01), "failed"), (ToyBackend(missing=True), "not run"),
])
def test_it_is_judged(tiny_bundle: Path, register: Any, backend: Backend, status: str) -> None:
    register(backend)
    report = judge(Bundle.open(tiny_bundle)).report
    stage = stage_of(report)
    assert stage.status == status and stage.name == "Toy frame fp32" and report.passed == (status != "failed")
    if status == "failed":
        assert {finding.head for finding in stage.findings} == {"depth"}
        assert report.blame == ("the error enters between ONNX Runtime frame fp32 and Toy frame fp32",)


def test_the_doctor_lists_it(tmp_path: Path, register: Any) -> None:
    register(ToyBackend())
    assert [c.status for c in check_machine(tmp_path) if c.subject == "Toy"] == ["ok"]
    backends.unregister("toy")
    register(ToyBackend(missing=True))
    (check,) = [check for check in check_machine(tmp_path) if check.subject == "Toy"]
    assert (check.status, check.finding) == ("not installed", "the toy box is empty")


def test_a_benchmark_times_it(tiny_bundle: Path, register: Any) -> None:
    from benchmarks.contenders import contenders

    register(ToyBackend())
    rows = [one for one in contenders(Bundle.open(tiny_bundle)) if one.name.startswith("toy ")]
    assert rows
    opened = rows[0].open()
    assert set(opened(photo(64, 80)[None])) == {"depth", "normals", "alpha"}
    opened.close()


def test_names_are_unique_and_known(register: Any) -> None:
    register(ToyBackend())
    with pytest.raises(BadInput, match="already registered"):
        backends.register(ToyBackend())
    with pytest.raises(BadInput, match="expected one of toy, tensorrt"):
        backends.get("tensorflow")
    backends.unregister("toy")
    with pytest.raises(BadInput, match="expected one of"):
        backends.register(ToyBackend(), before="nothing")
