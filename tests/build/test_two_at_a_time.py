"""Engines that are built two at a time: what one failure leaves, which graphs are too large, and what is reused."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from dpt_deploy import build
from dpt_deploy.build import EngineOptions, build_engines
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BadInput, BuildError
from dpt_deploy.core.plan import PrecisionPlan
from tests.tiny import export_frame, lively_model, own_bundle, tiny_bundle  # noqa: F401

RTX = EngineOptions("tensorrt-rtx")
PRECISIONS = ("fp32", "fp16")


def without_engines(folder: Path) -> Bundle:
    bundle = Bundle.open(folder)
    for engine in bundle.find("engine"):
        bundle.remove(engine)
    return bundle


class Builds:
    """Stands for `build_engine`: counts what runs at once, and fails where it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fails: str = "") -> None:
        self.started: list[str] = []
        self.running = self.most = 0
        self.fails, self.lock = fails, threading.Lock()
        monkeypatch.setattr(build, "build_engine", self)

    def __call__(self, onnx: Path, plan: Path, *_: object) -> dict[str, object]:
        with self.lock:
            self.started.append(onnx.name)
            self.running += 1
            self.most = max(self.most, self.running)
        time.sleep(0.2 if onnx.name == self.fails else 1)  # the others are still at work when the failure is noticed
        with self.lock:
            self.running -= 1
        if onnx.name == self.fails:
            raise BuildError(f"cannot write {plan}")
        plan.write_bytes(b"engine")
        return {}


def test_a_failure_starts_no_further_build_and_leaves_nothing(own_bundle, monkeypatch) -> None:  # noqa: F811
    bundle = without_engines(own_bundle)
    first, *_, last = (graph.file for graph in bundle.find("onnx"))
    before = set(os.listdir(own_bundle))
    builds = Builds(monkeypatch, first)
    with pytest.raises(BuildError) as error:
        build_engines(bundle, RTX, lambda line: None, PRECISIONS)
    engine = own_bundle / build.find_builder("tensorrt-rtx").file_name("model", "fp32")
    assert str(error.value) == f"cannot write {engine}", "the engine's own path, not a temporary one"
    assert builds.most == 2 and last not in builds.started
    assert set(os.listdir(own_bundle)) == before and not bundle.find("engine")


def test_large_graphs_are_built_one_after_the_other_with_their_external_data_counted(
    own_bundle, monkeypatch  # noqa: F811
) -> None:
    bundle = without_engines(own_bundle)
    graph = bundle.find("onnx")[0]
    data = bundle.folder / f"{graph.file}.data"
    with open(data, "wb") as file:
        file.truncate(build.AT_ONCE_BYTES + 1)
    bundle.add(data.name, "data")
    builds = Builds(monkeypatch, graph.file)
    with pytest.raises(BuildError):
        build_engines(bundle, RTX, lambda line: None, PRECISIONS)
    assert builds.started == [graph.file] and builds.most == 1


def test_engines_that_are_there_need_no_folder(own_bundle, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setattr(build, "temporary_folder", lambda path: pytest.fail("nothing is to be built"))
    assert len(build_engines(Bundle.open(own_bundle), RTX, lambda line: None)) == 2


def test_a_folder_with_an_engines_name_is_one_sentence(own_bundle, monkeypatch) -> None:  # noqa: F811
    bundle = without_engines(own_bundle)
    Builds(monkeypatch)
    (own_bundle / build.find_builder("tensorrt-rtx").file_name("model", "fp16")).mkdir()
    with pytest.raises(BadInput, match=r"model\.fp16\..*\.engine"):
        build_engines(bundle, RTX, lambda line: None)


def test_the_frame_graph_of_a_letterbox_becomes_an_engine(own_bundle) -> None:  # noqa: F811
    """Its resize has arithmetic of integers that the graph of a stretch lacks."""
    bundle = without_engines(own_bundle)
    model = lively_model()
    for graph in bundle.find("onnx", graph="model"):
        bundle.remove(graph)
    contract = model.contract("letterbox")
    bundle.update(contract=contract.to_json())
    export_frame(model, contract, own_bundle / "frame.fp16.onnx", PrecisionPlan())
    bundle.add("frame.fp16.onnx", "onnx", graph="frame", precision="fp16",
               details={"opset": 23, "plan": PrecisionPlan()})
    (engine,) = build_engines(bundle, RTX, lambda line: None)
    assert engine.details.certificate.status == "passed"
