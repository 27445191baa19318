"""The GPU validation: its steps, limits and results. No test looks at a time, and nothing here runs on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_validation
from benchmarks.gpu import catalogue, process
from benchmarks.gpu.goals import GOALS, NOT_REHEARSED, judge_goals, passed
from benchmarks.gpu.step import NotRun, Run, Step, require
from benchmarks.gpu.summary import summary
from dpt_deploy.core.errors import BadInput

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "benchmarks/gpu_validation.py"]
# What a bare machine lacks: everything that torch, timm, onnx and numpy do not bring.
BARE = """
import runpy, sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Missing())
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in {names} else found(name, package)
sys.argv = ["benchmarks/gpu_validation.py", *sys.argv[1:]]
runpy.run_path("benchmarks/gpu_validation.py", run_name="__main__")
"""
ABSENT = ("pydantic", "tyro", "rich", "scipy", "psutil", "pynvml", "jinja2", "matplotlib", "openvino", "tensorrt",
          "tensorrt_rtx", "polygraphy", "cuda", "docstring_parser", "OpenEXR", "cv2")


def validate(*arguments: str, bare: bool = False) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BARE.format(names=ABSENT)] if bare else COMMAND
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, cwd=ROOT)


def has_gpu() -> bool:
    return process.gpu_name() is not None


def run_of(**changes: Any) -> Run:
    return replace(Run(dry=False, limit=30.0, work=Path("unused")), **changes)


# Steps


@pytest.mark.slow
def test_the_rehearsal_walks_each_kind_of_step_on_a_bare_machine(tmp_path: Path) -> None:
    """Every function of the steps that need no engine, with torch, timm, onnx, ONNX Runtime and numpy alone."""
    names = "device,inference-1,training-6,profile-1,switches-1,graphs,onnxruntime-1,build,leaks"
    done = validate("--dry-run", "--out", str(tmp_path), "--steps", names, bare=True)
    result = json.loads((tmp_path / "gpu_validation.json").read_text())
    steps = result["steps"]
    unexpected = [row for step in steps.values() for row in (*step.get("rows", []), *step.get("switches", []))
                  if "error" in row]
    assert not unexpected
    assert [name for name, step in steps.items() if step["status"] != "ran"] == ["build", "leaks"], done.stderr
    assert "pydantic" in steps["build"]["reason"] and "tyro" in steps["build"]["reason"]
    assert result["dry_run"] and all(step["dry_run"] and step.get("ran_on", "cpu") == "cpu" for step in steps.values())
    assert all(one["value"] is None for one in result["goals"]), "a rehearsal measures nothing"
    text = (tmp_path / "summary.md").read_text()
    assert "Rehearsal" in text and text in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gpu_validation.json", "summary.md"]
    judged = [row for name in ("inference-1", "switches-1", "graphs", "onnxruntime-1")
              for row in steps[name]["rows"] if row["status"] == "ran"]
    assert len(judged) > 15 and {row["parity"]["status"] for row in judged} == {"passed"}
    assert all(row["parity"]["images"] for row in judged)
    assert steps["inference-1"]["maps_of_the_reference"]["depth_std_over_mean"] > 1e-4, "constant maps compare nothing"


@pytest.mark.slow
def test_the_rehearsal_walks_all_steps(tmp_path: Path) -> None:
    done = validate("--dry-run", "--out", str(tmp_path))
    steps = json.loads((tmp_path / "gpu_validation.json").read_text())["steps"]
    assert done.returncode == 0 and tuple(steps) == catalogue.NAMES
    assert {step["reason"] for step in steps.values() if step["status"] != "ran"} == {NOT_REHEARSED}


def test_every_step_has_a_function_that_exists() -> None:
    for step in catalogue.STEPS:
        module, _, name = step.function.partition(":")
        tree = (ROOT / f"benchmarks/gpu/{module}.py").read_text()
        assert f"def {name}(run: Run" in tree and step.limit < 540
    assert len(set(catalogue.NAMES)) == len(catalogue.NAMES)


def test_a_missing_package_is_named_with_the_wheels_to_carry() -> None:
    with pytest.raises(NotRun, match="not installed: no_such_package"):
        require("json", "no_such_package")


def test_a_gpu_step_never_records_what_ran_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step("x", "", 9, "hardware:measure")
    if not has_gpu():
        with pytest.raises(NotRun, match="no GPU is visible to PyTorch"):
            step(run_of())
    monkeypatch.setattr("benchmarks.gpu.step.require_gpu", lambda: None)
    monkeypatch.setattr("benchmarks.gpu.hardware.measure", lambda run: {"ran_on": "cpu"})
    with pytest.raises(NotRun, match="dropped"):
        step(run_of())


def test_tensors_on_the_processor_are_no_result_of_a_gpu() -> None:
    import torch

    from benchmarks.gpu.step import ran_on

    with pytest.raises(NotRun, match="lies on cpu"):
        ran_on(run_of(), torch.ones(1))
    assert ran_on(run_of(dry=True), torch.ones(1)) == {"ran_on": "cpu"}


def test_without_a_gpu_the_validation_says_so(tmp_path: Path) -> None:
    if has_gpu():
        pytest.skip("a GPU is visible here")
    done = validate("any-bundle", "--out", str(tmp_path))
    assert done.returncode == 2
    assert "no GPU is visible" in done.stderr and "Traceback" not in done.stderr
    assert not any(tmp_path.iterdir()), "an earlier result must stay"


@pytest.mark.parametrize(("arguments", "message"), [
    (("--steps", "inferenc"), "expected names among device"), (("--dry-run",), "expected --out"),
    (("nowhere", "--dry-run", "--out", "nowhere"), r"nowhere: expected a bundle.*dpt_deploy\.export"),
    (("--max-seconds", "0"), "positive"), (("--seconds", "9"), "--max-seconds")])
def test_wrong_options_are_refused_in_one_sentence(arguments: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        gpu_validation.main([*arguments])


def test_a_name_without_its_batch_means_all_batches_and_a_full_name_itself() -> None:
    assert [step.name for step in gpu_validation.choose("inference, training-6")] == [
        "inference-1", "inference-16", "training-6"]
    assert gpu_validation.choose(None) == list(catalogue.STEPS)


# Processes and result files


class Fake(Step):
    """A step whose work is a function."""

    def __call__(self, run: Run) -> dict[str, Any]:
        return self.arguments["work"](run)


def fake(name: str, work: Any, limit: float = 30.0) -> Fake:
    return Fake(name, "", limit, "", {"work": work})


def test_a_step_that_fails_or_dies_is_not_run_and_what_it_knew_stays() -> None:
    def fails(run: Run) -> dict[str, Any]:
        run.report({"rows": [1], "nan": float("nan")})
        raise ValueError("first line\nsecond line")

    found = process.run_step(fake("x", fails), run_of(), lambda partial: None)
    assert (found["status"], found["reason"], found["rows"], found["nan"]) == ("incomplete", "first line", [1], None)
    found = process.run_step(fake("x", lambda run: os._exit(3)), run_of(), lambda partial: None)
    assert found["status"] == "not run" and "ended with status 3" in found["reason"]


def test_a_step_is_killed_in_time_with_what_it_started(tmp_path: Path) -> None:
    def hangs(run: Run) -> dict[str, Any]:
        nested = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], process_group=0)
        (tmp_path / "pid").write_text(str(nested.pid))
        run.report({"rows": ["known"]})
        time.sleep(600)
        return {}

    seen = []
    found = process.run_step(fake("x", hangs), run_of(limit=3.0), seen.append)
    assert found["status"] == "incomplete" and found["rows"] == ["known"] and "time limit of 3 s" in found["reason"]
    assert seen and seen[0]["rows"] == ["known"] and seen[0]["status"] == "incomplete"
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    for _ in range(100):
        if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the process that the step started still runs")


def options(**changes: Any) -> Any:
    found = gpu_validation.parser().parse_args([])
    vars(found).update(changes)
    return found


def test_a_second_run_continues_with_what_has_not_run(tmp_path: Path) -> None:
    file, calls = tmp_path / "r.json", tmp_path / "calls"

    def counted(run: Run) -> dict[str, Any]:
        with open(calls, "a") as log:
            log.write("x")
        return {}

    def fails(run: Run) -> dict[str, Any]:
        with open(calls, "a") as log:
            log.write("y")
        raise NotRun("nothing to do")

    chosen = [replace(fake("device", counted)), replace(fake("leaks", fails))]
    for again in (False, False, True):
        result = gpu_validation.earlier(file, False) | {"machine": {
            "commit": "c", "date": "d", "gpu": None, "versions": {}}}
        gpu_validation.run_all(chosen, options(again=again), tmp_path, result, file, time.perf_counter())
    assert calls.read_text() == "xy" "y" "xy"
    kept = json.loads(file.read_text())["steps"]
    assert kept["device"]["status"] == "ran" and kept["leaks"]["reason"] == "nothing to do"
    gpu_validation.run_all(chosen, options(again=True, max_seconds=1.0), tmp_path, result, file, time.perf_counter())
    assert calls.read_text() == "xyyxy", "no step starts without time"
    assert json.loads(file.read_text())["steps"] == kept, "what was known stays"


def test_a_step_that_never_ends_keeps_no_other_from_running_and_a_better_result_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, calls = tmp_path / "r.json", tmp_path / "calls"
    monkeypatch.setattr(gpu_validation, "LEAST", 1.0)
    monkeypatch.setattr(gpu_validation, "QUICK", 0.0)

    def hangs(run: Run) -> dict[str, Any]:
        first = not calls.exists()
        with open(calls, "a") as log:
            log.write("h")
        run.report({"rows": [{"status": "ran"}] * (2 if first else 1)})
        time.sleep(600)
        return {}

    def ends(run: Run) -> dict[str, Any]:
        with open(calls, "a") as log:
            log.write("e")
        return {}

    chosen = [fake("device", hangs, limit=2.0), fake("leaks", ends, limit=2.0)]
    for seconds in (2.5, 20.0, 20.0):
        result = gpu_validation.earlier(file, False) | {"machine": {
            "commit": "c", "date": "d", "gpu": None, "versions": {}}}
        gpu_validation.run_all(chosen, options(max_seconds=seconds), tmp_path, result, file, time.perf_counter())
    assert calls.read_text() == "h" "eh", "what was tried comes last, and twice at most"
    kept = json.loads(file.read_text())["steps"]
    assert kept["leaks"]["status"] == "ran"
    assert len(kept["device"]["rows"]) == 2 and kept["device"]["retry"]["status"] == "incomplete"
    assert kept["device"]["attempts"] == 2


def test_a_rehearsal_never_replaces_measurements_nor_the_reverse(tmp_path: Path) -> None:
    file = tmp_path / "gpu_validation.json"
    file.write_text(json.dumps({"steps": {}}))
    with pytest.raises(BadInput, match="holds measurements, and this run is a rehearsal"):
        gpu_validation.earlier(file, True)
    file.write_text(json.dumps({"steps": {}, "dry_run": True}))
    with pytest.raises(BadInput, match="holds a rehearsal, and this run is measurements"):
        gpu_validation.earlier(file, False)
    file.write_text("[]")
    with pytest.raises(BadInput, match="expected a result of this command"):
        gpu_validation.earlier(file, False)


# Goals and summary


def measured(engine_ms: float, share: float, ratio: float, peak: float = 5.0) -> dict[str, Any]:
    def row(artifact: str | None, median: float) -> dict[str, Any]:
        return {"name": f"row of {artifact}", "artifact": artifact, "precision": "fp16",
                "times_faster_than_compiled": {"median": median}}

    return {
        "engine-time": {"artifact": "a.engine", "times": {
            "batch 1": {"parts_ms": {"engine": [engine_ms, 9.0, 9.0]}},
            "batch 16": {"share_of_fp16_matrix_rate": share}}},
        "latency-1": {"rows": [row("a.engine", ratio), row("b.engine", 0.5), row(None, 9.0),
                               {"artifact": "c", "precision": "fp16"}]},
        "training-6": {"guide": {"peak_gib": peak * 1e9 / 2**30}},
    }


@pytest.mark.parametrize(
    ("values", "met"),
    [((1.4, 0.7, 1.31, 5.0), [True] * 4), ((1.6, 0.5, 1.2, 9.0), [False] * 4), ((1.5, 0.6, 1.3, 8.0), [True] * 4)],
)
def test_goals_are_held_against_what_was_measured(values: tuple[float, ...], met: list[bool]) -> None:
    judged = judge_goals(measured(*values))
    assert [one["value"] for one in judged] == pytest.approx(values) and [one["met"] for one in judged] == met
    assert [one["of"] for one in judged] == ["a.engine", "a.engine", "row of a.engine", "PyTorch"]


def test_what_was_not_measured_is_not_met_either() -> None:
    rehearsed = {name: step | {"dry_run": True} for name, step in measured(1.0, 0.7, 2.0).items()}
    for nothing in ({}, {"engine-time": {"status": "not run"}, "latency-1": {"status": "not run"}}, rehearsed):
        assert [(one["value"], one["met"]) for one in judge_goals(nothing)] == [(None, None)] * len(GOALS)


def test_only_steps_that_ran_and_passed_count() -> None:
    ran = {"status": "ran"}
    over = ran | {"rows": [{"name": "r", "parity": {"status": "failed", "over_budget": ["depth max"]}}]}
    assert passed({"a": ran, "b": ran | {"passed": True}}, ("a", "b"))
    for bad in ({"status": "not run", "reason": NOT_REHEARSED}, {"status": "incomplete"}, {}, over,
                ran | {"passed": False}, ran | {"dry_run": True, "rows": [{"error": "TypeError"}]}):
        assert not passed({"a": ran, "b": bad}, ("a", "b"))


def test_the_summary_says_what_did_not_run_and_warns_of_two_gpus() -> None:
    result = {"machine": {"commit": "abc", "date": "today", "gpu": None, "versions": {}}, "goals": judge_goals({}),
              "steps": {"device": {"status": "ran", "device": "A", "doubts": ["throttled"]},
                        "inference-1": {"status": "ran", "device": "B"},
                        "build": {"status": "not run", "reason": "pydantic is not installed"}}}
    text = summary(result)
    assert "pydantic is not installed" in text and "different GPUs: A, B" in text and "- throttled" in text
    assert text.count("not measured") == len(GOALS)
