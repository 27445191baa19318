"""The verdict fails, and names the head, for what goes wrong in the field."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from dpt_deploy.core import metrics
from dpt_deploy.core.budget import held_to
from dpt_deploy.core.errors import BadInput, Cause
from dpt_deploy.core.verdict import Compared, Fault, StageId, StageKind, not_run
from dpt_deploy.parity import ParityReport, Reference, compare, load_budget
from tests.parity.conftest import loose_budget
from tests.parity.conftest import random_case as case

BUDGET, _ = load_budget(None)


REFERENCE = Reference((case("one"), case("two", seed=1), case("noise", True, seed=2)))
ANSWERS = {c.frame.tobytes(): c.maps["frame"] for c in REFERENCE.cases}


def run_with(change=lambda maps: maps):
    """A candidate that answers the reference's maps after `change`."""
    def run(batch):
        answers = [change({k: v.copy() for k, v in ANSWERS[frame.tobytes()].items()}) for frame in batch]
        return {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}
    return run


def candidate(precision="fp32"):
    return StageId(StageKind.BACKEND, "frame", precision, title="candidate")


def judged(change=lambda maps: maps, precision="fp32"):
    return compare(candidate(precision), run_with(change), REFERENCE, BUDGET)


def test_equal_maps_pass():
    stage = judged()
    assert stage.passed and stage.status == "passed" and stage.heads["depth"]["abs_rel"] == 0


@pytest.mark.parametrize(
    ("change", "head"),
    [
        (lambda m: m | {"depth": m["depth"] * 1.001}, "depth"),
        (lambda m: m | {"normals": m["normals"][..., [1, 0, 2]]}, "normals"),
        (lambda m: m | {"normals": m["normals"] * (-1, 1, 1)}, "normals"),
        (lambda m: m | {"alpha": metrics.sigmoid(m["alpha"])}, "alpha"),
        (lambda m: m | {"alpha": np.log(m["alpha"] / (1 - m["alpha"]))}, "alpha"),
        (lambda m: m | {"depth": m["depth"][::-1]}, "depth"),
        (lambda m: m | {"alpha": 1 - m["alpha"]}, "alpha"),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_wrong_head_fails_and_is_named(change, head, precision):
    if precision == "fp16" and head == "depth":
        change = lambda m, change=change: m | {"depth": change(m)["depth"] * 1.01}  # noqa: E731
    stage = judged(change, precision)
    assert not stage.passed
    assert {finding.head for finding in stage.findings} == {head}
    assert all(reason.startswith(head) for reason in stage.reasons), stage.reasons


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("head", ["depth", "normals", "alpha"])
def test_one_value_that_is_not_finite_fails(value, head):
    def change(maps):
        maps[head].flat[5] = value
        return maps

    stage = judged(change)
    assert not stage.passed and f"{head} is NaN or Inf" in stage.reasons[0]
    assert {(finding.fault, finding.head) for finding in stage.findings} == {(Fault.NOT_FINITE, head)}


def test_an_images_name_does_not_make_its_fault_another_heads():
    """Whatever an image is called, what is wrong with depth is told of depth alone."""
    name = "photo: normals has been.png"
    reference = Reference((case(name),))

    def change(value):
        def run(batch):
            maps = {key: array[None].copy() for key, array in reference.cases[0].maps["frame"].items()}
            maps["depth"][0, 0, 0] = value
            return maps
        return compare(candidate(), run, reference, BUDGET)

    for stage, fault in ((change(np.nan), Fault.NOT_FINITE), (change(np.float32(100)), Fault.OVER_BUDGET)):
        assert stage.status == "failed" and name in stage.reasons[0]
        assert {(finding.fault, finding.head, finding.image) for finding in stage.findings} == {(fault, "depth", name)}
        assert stage.findings_of("depth") and not stage.findings_of("normals") and not stage.findings_of("alpha")


def test_not_finite_fails_on_an_adversarial_input_in_half_too():
    def change(maps):
        if np.array_equal(maps["depth"], REFERENCE.cases[2].maps["frame"]["depth"]):
            maps["depth"][0, 0] = np.inf
        return maps

    assert not judged(change, "fp16").passed


def test_a_missing_output_a_wrong_shape_and_an_exception_fail():
    assert "no output normals" in judged(lambda m: {"depth": m["depth"], "alpha": m["alpha"]}).reasons[0]
    assert "has shape" in judged(lambda m: m | {"depth": m["depth"].T}).reasons[0]

    def frozen(batch):
        if len(batch) > 1:
            raise RuntimeError("Got: 2 Expected: 1")
        return run_with()(batch)

    stage = compare(candidate(), frozen, REFERENCE, BUDGET)
    assert not stage.passed and "a batch of 2" in stage.reasons[0]


def test_a_batch_answered_with_its_first_image_fails():
    def run(batch):
        first = run_with()(batch[:1])
        return {name: np.repeat(value, len(batch), axis=0) for name, value in first.items()}

    assert not compare(candidate("fp16"), run, REFERENCE, BUDGET).passed


def test_depth_and_normals_count_in_the_foreground_only():
    background = {name: c.maps["frame"]["alpha"] <= 0.5 for name, c in zip("abc", REFERENCE.cases, strict=True)}

    def change(maps):
        mask = maps["alpha"] <= 0.5
        maps["depth"][mask] *= 2
        return maps

    assert background and judged(change).passed


def test_the_worst_image_is_named():
    def change(maps):
        if np.array_equal(maps["depth"], REFERENCE.cases[1].maps["frame"]["depth"]):
            maps["depth"] *= 1.1
        return maps

    assert judged(change).worst["depth"] == "two"


def test_not_run_is_never_passed_and_a_report_survives_json():
    engine = not_run(StageId(StageKind.BACKEND, "frame", "fp16", "tensorrt", "gpu"), Cause.NO_GPU, "no GPU")
    stages = (judged(), judged(lambda m: m | {"depth": m["depth"] * np.nan}), engine)
    report = ParityReport(stages, BUDGET, "default", ("one",))
    assert not report.passed and report.failed == [stages[1]] and report.not_run == [engine] and not engine.passed
    again = ParityReport.from_json(json.loads(json.dumps(report.to_json())))
    assert again.verdict == report.verdict and "1 not run" in again.verdict
    nothing = ParityReport((engine,), BUDGET, "default", ())
    assert not nothing.passed and nothing.verdict.startswith("NOT RUN: ")
    assert ParityReport((stages[0], engine), BUDGET, "default", ()).passed


def test_a_head_that_was_never_measured_fails():
    """In half precision adversarial inputs count for finiteness alone, and here there are no others."""
    alone = Reference((REFERENCE.cases[2],))
    stage = compare(candidate("fp16"), run_with(), alone, BUDGET)
    assert {(finding.fault, finding.head) for finding in stage.findings} == {
        (Fault.NOT_MEASURED, "depth"), (Fault.NOT_MEASURED, "normals"), (Fault.NOT_MEASURED, "alpha")}
    assert not stage.passed and compare(candidate(), run_with(), alone, BUDGET).passed


def test_another_budget_is_named_in_the_verdict(tmp_path):
    budget, name = load_budget(loose_budget(tmp_path / "loose.json"))
    run = run_with(lambda m: m | {"depth": m["depth"] * 1.1})
    stage = compare(candidate(), run, REFERENCE, budget)
    assert stage.passed
    assert "loose.json" in ParityReport((stage,), budget, name, ()).verdict


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda b: [], "it is not an object of fp32, fp16"), (lambda b: b.pop("fp16"), "it lacks fp16"),
        (lambda b: b.update(bf16=b["fp16"]), "it has bf16; expected fp32, fp16"),
        (lambda b: b["fp32"].pop("normals"), "fp32 lacks normals"),
        (lambda b: b["fp16"].update(albedo={"x": 1}), "fp16 has albedo"),
        (lambda b: b["fp16"]["depth"].update(absrel=1), "fp16.depth has absrel; expected abs_rel, p99.9"),
        (lambda b: b["fp16"]["alpha"].clear(), "fp16.alpha lacks mean, max, iou"),
        (lambda b: b["fp16"]["alpha"].update(max="1"), 'fp16.alpha.max is "1"'),
        (lambda b: b["fp16"]["alpha"].update(max=math.nan), "NaN is not valid JSON"),
        (lambda b: b["task"].pop("alpha"), "task lacks alpha"),
        (lambda b: b["task"]["normals"].clear(), "task.normals lacks mean"),
        (lambda b: b["task"]["alpha"].update(max=1.0), "task.alpha has max; expected iou, mae"),
        (lambda b: b["task"]["depth"].update(abs_rel=None), "task.depth.abs_rel is null"),
    ],
)
def test_a_budget_that_lets_something_pass_unseen_is_refused(tmp_path, change, part):
    path, budget = tmp_path / "budget.json", json.loads(json.dumps(BUDGET))
    changed = change(budget)
    path.write_text(json.dumps(changed if isinstance(changed, list) else budget))
    with pytest.raises(BadInput, match=f"expected a budget.*bf16 is held to fp16's.*{re.escape(part)}"):
        load_budget(path)


@pytest.mark.parametrize("missing", [["int8"], ["task"], ["int8", "task"]])
def test_a_budget_from_before_eight_bits_takes_the_projects_own_for_them(tmp_path, missing):
    path = tmp_path / "budget.json"
    path.write_text(json.dumps({key: limits for key, limits in BUDGET.items() if key not in missing}))
    assert load_budget(path) == (BUDGET, "budget.json")


def test_a_budget_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "budget.json").write_text("{")
    with pytest.raises(BadInput, match=r"expected a budget.*not valid JSON"):
        load_budget(tmp_path / "budget.json")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_image_whose_answer_is_not_valid_is_the_worst(precision):
    """Adversarial or not: the search for a better precision looks at the worst images."""
    def change(maps):
        if np.array_equal(maps["depth"], REFERENCE.cases[2].maps["frame"]["depth"]):
            maps["depth"][0, 0] = np.inf
        return maps

    assert judged(change, precision).worst["depth"] == "noise"
    assert judged(lambda m: m | {"normals": m["normals"] * np.nan}).worst["normals"] == "one"


def flipped(reference, count):
    """`reference` with `count` of its pixels on the other side of 0.5, by at most 0.01."""
    near = np.flatnonzero(np.abs(reference - 0.5) < 0.004)[:count]
    assert len(near) == count
    have = reference.copy()
    have.flat[near] = 1 - reference.flat[near]
    return have


def test_pixels_that_may_fall_either_way_do_not_count_against_iou():
    rng = np.random.default_rng(0)
    reference = np.where(rng.uniform(size=(128, 128)) < 0.07, 0.9, 0.1).astype(np.float32)  # 1,200 pixels
    reference[0, :4] = (0.501, 0.499, 0.5005, 0.503)
    assert metrics.iou(flipped(reference, 4), reference) < 0.999
    assert metrics.alpha_parity(flipped(reference, 4), reference)["iou"] == 1


def test_pixels_far_from_the_threshold_that_flip_still_fail():
    def change(maps):
        far = np.flatnonzero(np.abs(maps["alpha"] - 0.5) > 0.02)[:2]
        maps["alpha"].flat[far] = 1 - maps["alpha"].flat[far]
        return maps

    stage = judged(change, "fp16")
    assert not stage.passed and any(reason.startswith("alpha iou") for reason in stage.reasons)


def test_identical_normals_are_at_zero_degrees():
    normals = REFERENCE.cases[0].maps["frame"]["normals"]
    assert metrics.angle(normals, normals).max() < 1e-5
    assert metrics.angle(np.array([1.0, 0, 0]), np.array([-1.0, 0, 0])) == pytest.approx(180)


@pytest.mark.parametrize("lost", [["normals"], ["depth", "normals", "alpha"]])
@pytest.mark.parametrize("index", [0, 1])
def test_a_reference_that_lacks_a_map_of_one_case_is_no_pass(lost, index):
    """Whatever the first case holds: the contract says which maps every case needs."""
    cases = list(REFERENCE.cases)
    maps = {name: value for name, value in cases[index].maps["frame"].items() if name not in lost}
    cases[index] = dataclasses.replace(cases[index], maps={"frame": maps})
    stage = compare(candidate(), run_with(), Reference(tuple(cases)), BUDGET)
    assert stage.status == "failed"
    assert {(finding.fault, finding.head) for finding in stage.findings} == {(Fault.NOT_MEASURED, h) for h in lost}
    assert "one: " in stage.reasons[0] if index == 0 else "two: " in stage.reasons[0]


def test_a_reference_without_cases_or_maps_is_no_pass():
    without = Reference(tuple(dataclasses.replace(c, maps={}) for c in REFERENCE.cases))
    for reference in (without, Reference(())):
        stage = compare(candidate(), run_with(), reference, BUDGET)
        assert stage.status == "failed" and stage.compared == Compared() and stage.compared.nothing
        assert not ParityReport((stage,), BUDGET, "default", ()).passed


def test_a_stage_counts_what_it_compared():
    stage, half = judged(), judged(precision="fp16")
    foreground = [int((c.maps["frame"]["alpha"] > 0.5).sum()) for c in REFERENCE.cases]
    pixels = [2 * count + 24 * 32 for count in foreground]
    assert stage.compared == Compared(3, 3, sum(pixels))
    assert half.compared == Compared(2, 3, sum(pixels[:2]))  # the adversarial one counts for finiteness alone
    report = ParityReport((stage, half), BUDGET, "default", ("one",))
    assert ParityReport.from_json(report.to_json()).stages[1].compared == half.compared


def test_a_stored_pass_without_a_comparison_is_refused():
    value = ParityReport((judged(),), BUDGET, "default", ()).to_json()
    value["stages"][0]["compared"]["images"] = 0
    with pytest.raises(ValueError, match="nothing was compared"):
        ParityReport.from_json(value)
    del value["stages"][0]["compared"]  # version 0.1.0 did not count
    assert ParityReport.from_json(value).passed


def test_a_stage_judged_earlier_says_which_metric_it_lacks():
    stage = judged()
    lacking = dataclasses.replace(stage, heads=stage.heads | {"depth": {"abs_rel": 0.0}})
    limits = BUDGET["fp32"] | {"depth": {"abs_rel": 1.0, "max": 1.0}}
    limited = BUDGET | {"fp32": limits}
    held = held_to(lacking, limited)
    assert held.status == "failed"
    assert all("was never measured: it has a limit now" in reason for reason in held.reasons), held.reasons
    assert all("--checkpoint" in reason and "NaN" not in reason for reason in held.reasons)
    assert held_to(held, limited).findings == held.findings
    assert held_to(held, BUDGET).passed
