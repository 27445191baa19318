"""The pytest plugin: a test per stage and head, and nothing without its option."""

from __future__ import annotations

import subprocess
import sys

import pytest

from dpt_deploy.core.errors import BadBundle
from dpt_deploy.core.verdict import Fault, Finding
from tests.parity.conftest import judge_and_write, loose_budget, pytorch_stage, weights_stage
from tests.parity.test_judge import replant

pytest_plugins = "pytester"
PLUGIN = "dpt_deploy.pytest_plugin"


@pytest.fixture
def run(pytester):
    """pytest in an empty folder, with the plugin as an installed package brings it."""
    return lambda *options: pytester.runpytest_inprocess("-p", PLUGIN, "-rs", *options)


def test_nothing_happens_without_the_option(run, pytester):
    assert run().ret == pytest.ExitCode.NO_TESTS_COLLECTED
    pytester.makepyfile("def test_one(): pass")
    run().assert_outcomes(passed=1)


def test_a_test_for_each_stage_and_head(run, bundle, pytester):
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    pytester.makepyfile("def test_own(): pass")
    result = run("--dpt-bundle", str(bundle.folder), "-v")
    names = [f"*bundle::ONNX Runtime frame fp32::{head} PASSED*" for head in ("depth", "normals", "alpha")]
    result.stdout.fnmatch_lines(["*test_own*PASSED*", *names, "*bundle::Runtime*depth SKIPPED*", "*not run: *"])
    outcomes = result.parseoutcomes()
    assert outcomes["passed"] == 4 and outcomes["skipped"] % 3 == 0 and "failed" not in outcomes
    assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before


def test_only_the_head_that_is_wrong_fails_and_tells_why(run, bundle):
    replant(bundle, 1.01)
    result = run("--dpt-bundle", str(bundle.folder))
    result.stdout.fnmatch_lines([
        "ONNX Runtime frame fp32, depth:", "depth abs_rel *, budget 1e-05, worst image *",
        "the error enters between PyTorch FP32 and ONNX Runtime frame fp32",
    ])
    outcomes = result.parseoutcomes()
    assert (outcomes["failed"], outcomes["passed"]) == (1, 2)
    assert result.ret == pytest.ExitCode.TESTS_FAILED and "Traceback" not in result.stdout.str()


def test_carried_stages_and_a_budget_and_a_choice_by_name(run, bundle, tmp_path):
    (graph,) = bundle.find("onnx")
    over = Finding(Fault.OVER_BUDGET, "depth", "abs_rel", 0.5, 0.001, "x")
    half = pytorch_stage(graph, "failed", heads={"depth": {"abs_rel": 0.5}}, worst={"depth": "x"}, findings=(over,))
    judge_and_write(bundle, judged=[weights_stage(graph), half])
    loose = loose_budget(tmp_path / "loose.json")
    options = ("--dpt-bundle", str(bundle.folder), "-k", "weights or PyTorch")
    run(*options).assert_outcomes(passed=3, failed=1, deselected=3 * 4)
    run(*options, "--dpt-budget", str(loose)).assert_outcomes(passed=4, deselected=3 * 4)


def test_a_wrong_weight_of_a_head_fails_the_test_of_the_weights(run, bundle):
    (graph,) = bundle.find("onnx")
    differs = Finding(Fault.TENSOR_DIFFERS, name="heads.depth.conv3.weight", value=0.01)
    judge_and_write(bundle, judged=[weights_stage(graph, "failed", findings=(differs,))])
    result = run("--dpt-bundle", str(bundle.folder), "-k", "weights")
    result.assert_outcomes(failed=1, deselected=3 * 4)
    result.stdout.fnmatch_lines(["heads.depth.conv3.weight differs by 1.00% of its largest weight"])


def test_a_bundle_that_cannot_be_judged_is_tried_once(run, bundle, monkeypatch):
    tries = []

    def refuse(bundle, budget):
        tries.append(bundle)
        raise BadBundle("no reference")

    monkeypatch.setattr("dpt_deploy.parity.judge", refuse)
    result = run("--dpt-bundle", str(bundle.folder))
    assert len(tries) == 1 and result.parseoutcomes()["failed"] > 1
    result.stdout.fnmatch_lines(["no reference"])


def test_a_folder_that_is_no_bundle_is_a_usage_error(run, tmp_path):
    result = run("--dpt-bundle", str(tmp_path / "none"))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--dpt-bundle: *expected a bundle*python -m dpt_deploy.export*"])


def test_the_plugin_is_light_and_registered():
    code = f"import {PLUGIN}, sys; print(sorted({{'torch', 'cv2', 'onnxruntime', 'onnx'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    import tomllib
    from pathlib import Path

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["pytest11"] == {PLUGIN: PLUGIN}
