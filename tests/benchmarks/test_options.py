"""Help pages show no private options and no absolute paths, and an old option names its new spelling."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from dpt_deploy.cli.help import parse

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {"latency": "LatencyConfig", "throughput": "ThroughputConfig", "scaling": "ScalingConfig",
           "tuning": "TuningConfig", "training": "TrainingConfig",
           "dataloader": "DataloaderConfig", "cpp_overhead": "OverheadConfig",
           "demonstration": "DemonstrationConfig"}


def options_of(name: str, *arguments: str) -> object:
    return parse(getattr(importlib.import_module(f"benchmarks.{name}"), CONFIGS[name]), name, arguments=[*arguments])


@pytest.mark.parametrize("name", CONFIGS)
def test_a_help_page_reads_well(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        options_of(name, "--help")
    page = capsys.readouterr().out
    assert ended.value.code == 0 and "--json" in page and "--out" in page
    for unwanted in ("None", str(ROOT), "--point"):
        assert unwanted not in page


def test_several_values_are_separated_by_commas() -> None:
    found = options_of("scaling", "--frame-sizes", "64,480x640", "--batches", "1,2", "--backends", "openvino,a",
                       "--models", "tiny", "--head-sets", "depth:alpha,depth")
    assert found.frame_sizes == ((64, 64), (480, 640)) and found.batches == (1, 2)
    assert found.backends == ("openvino", "a") and found.models == ("tiny",) and found.head_sets == "depth:alpha,depth"
    assert options_of("latency", "b", "--frame-size", "720x1280", "--contenders", "openvino frame,PyTorch").contenders \
        == ("openvino frame", "PyTorch")
    assert options_of("throughput", "--max-frames", "3", "--json").json is True


@pytest.mark.parametrize(("name", "old", "new"), [
    ("latency", "--frame", "--frame-size"), ("scaling", "--heads", "--head-sets"),
    ("throughput", "--frames", "--max-frames")])
def test_an_old_option_names_the_new_one(name: str, old: str, new: str) -> None:
    done = subprocess.run([sys.executable, f"benchmarks/{name}.py", old, "7"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and new in done.stderr and "Traceback" not in done.stderr
