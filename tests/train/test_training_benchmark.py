"""benchmarks/training.py runs, and says so where it cannot measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import training
from dpt_deploy.core.errors import BackendError


def test_it_runs_on_a_processor(tmp_path: Path):
    config = training.TrainingConfig("cpu", "bf16", batches=(1, 6), steps=2, warm_up=1, out=tmp_path)
    assert training.main(config) == 0
    result = json.loads((tmp_path / "training.json").read_text())
    assert [row["batch"] for row in result["rows"]] == [1, 6]
    for row in result["rows"]:
        assert row["status"] == "ran" and row["images_per_s"] > 0 and row["gflop_per_image"] > 0
    assert result["rows"][0]["gflop_per_image"] == pytest.approx(result["rows"][1]["gflop_per_image"])
    assert result["guide"]["holds"] is None, "a processor says nothing about GPU memory"


def test_without_a_gpu_it_says_so_and_writes_nothing(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is visible here")
    with pytest.raises(BackendError, match="no GPU is visible"):
        training.main(training.TrainingConfig(out=tmp_path))
    assert not any(tmp_path.iterdir()), "an earlier result must stay"


@pytest.mark.parametrize(("peak", "holds"), [(7.4, True), (7.5, False)])
def test_the_guides_claim_is_judged_in_its_own_gigabytes(peak: float, holds: bool):
    rows = [{"batch": 6, "compiled": False, "peak_gib": peak}]
    assert training.guide_claim(rows, "cuda")["holds"] is holds
