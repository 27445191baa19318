"""Triton's own protobuf reads what is written, for each backend; parity judges a server by its address."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.compact import form
from dpt_deploy.core.verdict import StageKind
from dpt_deploy.parity.compare import load_budget
from dpt_deploy.parity.judge import load_reference
from dpt_deploy.parity.server import judge_server
from dpt_deploy.serve import ServeOptions, write_repository
from dpt_deploy.serve.config_pbtxt import ModelConfig
from tests.serve.server.conftest import options
from tests.serve.server.server import ROOT

FORMS = (form("depth", "float32"), form("normals", "octahedral"), form("alpha", "uint8"))


@pytest.mark.parametrize(("served_by", "platform", "backend"), [
    ("tensorrt", "tensorrt_plan", ""), ("onnxruntime", "", "onnxruntime"), ("python", "", "python"),
])
def test_the_configuration_is_what_triton_reads(served_by, platform, backend):
    config = ModelConfig('na"me\\ü', served_by, FORMS, 6, ((1, 480, 640), (6, 480, 640)), 2, "gpu", 1.5, 99,
                         {"key": 'a "value"'})
    read = text_format.Parse(config.text(), model_config_pb2.ModelConfig())
    assert (read.name, read.platform, read.backend, read.max_batch_size) == ('na"me\\ü', platform, backend, 6)
    assert [(one.name, list(one.dims)) for one in read.input] == [("frame", [-1, -1, 3])]
    assert read.input[0].data_type == model_config_pb2.TYPE_UINT8
    assert [(one.name, one.data_type, list(one.dims)) for one in read.output] == [
        ("depth", model_config_pb2.TYPE_FP32, [-1, -1]),
        ("normals_octahedral", model_config_pb2.TYPE_INT8, [-1, -1, 2]),
        ("alpha_uint8", model_config_pb2.TYPE_UINT8, [-1, -1]),
    ]
    assert list(read.dynamic_batching.preferred_batch_size) == [2, 4, 6]
    assert read.dynamic_batching.max_queue_delay_microseconds == 1500
    assert read.dynamic_batching.default_queue_policy.max_queue_size == 99
    assert [(group.count, group.kind) for group in read.instance_group] == [
        (2, model_config_pb2.ModelInstanceGroup.KIND_GPU)]
    assert not read.response_cache.enable and read.version_policy.latest.num_versions == 1
    assert [(one.batch_size, list(one.inputs["frame"].dims)) for one in read.model_warmup] == [
        (1, [480, 640, 3]), (6, [480, 640, 3])]
    assert read.parameters["key"].string_value == 'a "value"'
    assert not read.HasField("ensemble_scheduling")


def test_parity_takes_the_servers_address(server, bundle):
    reference, _ = load_reference(bundle)
    small = reference.only(case for case in reference.cases if case.frame.shape[0] * case.frame.shape[1] <= 160 * 160)
    stages = judge_server(bundle, server.address("grpc"), "all", small, load_budget(None)[0])
    assert [stage.status for stage in stages] == ["passed"] * len(stages)
    assert {stage.id.kind for stage in stages} == {StageKind.SERVER}
    judged = {output for stage in stages for output in stage.name.split()[-1].split(",")}
    assert {"depth_uint16_mm", "depth_float16", "normals_int8", "normals_octahedral", "normals_octahedral16",
            "alpha_uint8"} <= judged
    assert stages[0].heads["depth"]["abs_rel"] < 1e-5 and any("uint16" in note for s in stages[1:] for note in s.notes)


def test_what_the_server_refuses_fails_its_stage(server, bundle):
    """The reference has frames with more pixels than the model takes."""
    reference, _ = load_reference(bundle)
    assert max(np.prod(case.frame.shape[:2]) for case in reference.cases) > 200 * 300
    stages = judge_server(bundle, server.address("grpc"), "plain", reference, load_budget(None)[0])
    assert [stage.status for stage in stages] == ["failed"] and "at most" in stages[0].reasons[0]


def parity(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "dpt_deploy", "parity", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)


def test_the_command_judges_a_server_and_says_when_it_cannot(server, bundle, tmp_path):
    own = Path(shutil.copytree(bundle.folder, tmp_path / "own"))
    done = parity(own, "--server", "127.0.0.1:1")
    assert done.returncode == 2 and "gave no answer" in done.stderr and "Traceback" not in done.stderr
    done = parity(own, "--server-model", "plain")
    assert done.returncode == 2 and "--server-model: expected --server too" in done.stderr
    done = parity(own, "--server", server.address("http"), "--server-model", "all", "--json")
    stages = {stage["name"]: stage for stage in json.loads(done.stdout)["stages"]}
    assert "Triton frame fp32" in stages and "Triton frame fp32" in (own / "report.html").read_text()
    assert Bundle.open(own).last_report() is not None


def test_a_server_of_another_bundle_is_refused(server, bundle, tmp_path):
    other = Bundle.open(shutil.copytree(bundle.folder, tmp_path / "other"))
    for graph in other.find("onnx", graph="frame"):
        other.update(artifacts=tuple(one for one in other.artifacts if one != graph))
    other.save()
    done = parity(other.folder, "--server", server.address("grpc"), "--server-model", "plain")
    assert done.returncode == 2 and "was written from frame.fp32.onnx" in done.stderr and done.stderr.count("\n") == 1


def test_onnxruntime_is_written_with_compact_forms(bundle, tmp_path):
    """This server has no such backend, so it is only written and read by ONNX Runtime; see tests/serve."""
    served = write_repository(bundle, tmp_path, ServeOptions("graph", "onnxruntime", forms=FORMS))
    text = (served.folder / "config.pbtxt").read_text()
    read = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert [one.name for one in read.output] == ["depth", "normals", "alpha", "normals_octahedral", "alpha_uint8"]
    assert options("x").served_by == "python"
