"""A graph that is exported in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.export.graph import export_graph
from dpt_deploy.export.graph_process import exporting
from dpt_deploy.export.precision import typed
from dpt_deploy.model import MultiTaskDPT
from tests.tiny import lively_model

ROOT = Path(__file__).resolve().parents[2]


class Undecided(nn.Module):
    """A module that torch.export cannot follow."""

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        if image.sum() > 0:
            return {"depth": image[:, :1]}
        return {"depth": image[:, 1:2]}


@pytest.fixture(scope="module")
def model() -> MultiTaskDPT:
    return lively_model()


def test_it_is_the_graph_that_this_process_would_export(model, tmp_path):
    here, there = tmp_path / "here.onnx", tmp_path / "there.onnx"
    module = typed(model, PrecisionPlan("fp32", ()))
    with exporting(module, "model", model.contract(), there, 23, {"plan": "{}"}) as finish:
        export_graph(module, "model", model.contract(), here, 23, {"plan": "{}"})
        finish()
    assert there.read_bytes() == here.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here.onnx", "there.onnx"]


def test_a_failed_export_is_one_sentence(model, tmp_path):
    with pytest.raises(BuildError, match=r"^graph\.onnx: torch\.onnx could not export it .*constraints\.txt\.$"), \
            exporting(Undecided(), "model", model.contract(), tmp_path / "graph.onnx", 23, {}) as finish:
        finish()
    assert not list(tmp_path.iterdir())


def test_a_block_that_fails_stops_the_export(model, tmp_path):
    module = typed(model, PrecisionPlan("fp32", ()))
    with pytest.raises(KeyError), exporting(module, "model", model.contract(), tmp_path / "graph.onnx", 23, {}):
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_it_ends_with_its_parent(tmp_path):
    code = f"""
import pathlib, time
from dpt_deploy.core.manifest import PrecisionPlan
from dpt_deploy.export.graph_process import exporting
from dpt_deploy.export.precision import typed
from tests.tiny import lively_model
model = lively_model()
path = pathlib.Path({str(tmp_path / "graph.onnx")!r})
with exporting(typed(model, PrecisionPlan("fp32", ())), "model", model.contract(), path, 23, {{}}):
    print("started", flush=True)
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                              start_new_session=True)
    assert parent.stdout.readline() == "started\n"
    parent.kill()
    parent.wait()
    parent.stdout.close()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            os.killpg(parent.pid, 0)  # the process group is gone once the export has ended
        except ProcessLookupError:
            break
        time.sleep(0.2)
    else:
        os.killpg(parent.pid, signal.SIGKILL)
        pytest.fail("the export outlived its parent")
    assert not list(tmp_path.rglob("graph.onnx")), "it went on to the end"
