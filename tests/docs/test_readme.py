"""The README's blocks work when they are pasted in order.

Every fenced bash and python block is run, in order, in one folder that stands for the clone. What needs the network or
takes minutes is replaced by the rules below, and by nothing else; all other lines run as they are printed. The export
finds the files of an earlier export of the same checkpoint and reuses them; tests/export makes them anew.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from dpt_deploy.cli.commands import ROWS, load
from dpt_deploy.cli.help import parse
from dpt_deploy.parity import load_budget
from tests.docs.conftest import CHECKPOINT, ROOT, Run

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SKIPPED = ("git clone ", "make demo", "make test", "python3 -m venv ", "pip install ")
"""Lines that need the network, take minutes or test what other tests test."""
TINY = {'backbone="vit_base_patch16_384", features=256': 'backbone="test_vit", features=32'}
"""The architecture of the tiny model that stands for a trained one."""


def substituted(line: str, checkpoint: Path) -> str:
    """The line of bash that runs in place of a line of the README."""
    if line.startswith(SKIPPED):
        return ""
    if line.startswith("dpt synthesize "):  # thousands of samples take an hour
        return re.sub(r"--count \d+", "--count 2", line)
    if line.startswith("dpt train "):  # the options must exist; a tiny model's checkpoint stands for the result
        command = load(ROWS["train"])
        config = parse(command.config, "dpt train", arguments=line.split()[2:])
        return f"mkdir -p {config.out} && cp {checkpoint} {config.out}/best_model.pth"
    return line


def test_the_blocks_run_in_order(tiny_bundle: Path, shell: Run, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(tiny_bundle, tmp_path / "engines/best_model", ignore=shutil.ignore_patterns("report.html"))
    checkpoint = tiny_bundle.parent / CHECKPOINT
    blocks = BLOCK.findall(README)
    assert len(blocks) >= 7
    for language, text in blocks:
        if language == "python":
            for printed, tiny in TINY.items():
                text = text.replace(printed, tiny)
            (tmp_path / "block.py").write_text(text, encoding="utf-8")
            text = "python -W error block.py"
        else:
            text = "\n".join(substituted(line, checkpoint) for line in text.splitlines())
        shell(text, tmp_path)
    assert (tmp_path / "engines/best_model/report.html").is_file()
    assert list((tmp_path / "predictions").glob("*.npz"))


@pytest.mark.parametrize("command", ["export", "build", "parity", "predict", "doctor", "synthesize", "train"])
def test_the_readme_names_the_command(command: str) -> None:
    assert f"dpt {command} " in README


def test_every_budget_in_the_readme_is_the_projects_own() -> None:
    budget, _ = load_budget(None)
    table = README.split("## What the verdict means")[1].split("Every weight")[0]
    rows = {cells[1].strip(): cells[3:5] for line in table.splitlines() if (cells := line.split("|"))[1:]}
    for head in ("depth", "normals", "alpha"):
        for cell, precision in zip(rows[head], ("fp32", "fp16"), strict=True):
            printed = {float(number) for number in cell.replace("none", "").split(";") if number.strip()}
            assert printed == set(budget[precision][head].values()), (head, precision)


def test_every_budget_of_eight_bits_in_the_docs_is_the_projects_own() -> None:
    budget, _ = load_budget(None)
    page = (ROOT / "docs/parity.md").read_text(encoding="utf-8")
    table = page.split("| head | budget of distances, INT8 and FP8 | margins of the task |")[1].split("\n\n")[0]
    rows = {cells[1].strip(): cells[2:4] for line in table.splitlines() if len(cells := line.split("|")) > 4}
    for head in ("depth", "normals", "alpha"):
        for cell, key in zip(rows[head], ("int8", "task"), strict=True):
            printed = {float(number) for number in re.findall(r"\d+(?:\.\d+)?", cell)}
            assert printed == set(budget[key][head].values()), (head, key)


def timed(file: str, name: str) -> dict:
    """A row of a committed latency benchmark."""
    rows = json.loads((ROOT / "benchmarks/results" / file).read_text(encoding="utf-8"))["rows"]
    (row,) = [row for row in rows if row["name"] == name]
    return row


def test_the_speed_in_the_readme_is_that_of_the_results() -> None:
    row = timed("cpu_latency.json", "openvino frame fp32")
    assert f"{row['p50_ms'] / 1000:.2f} s" in README
    assert f"{row['times_faster_than_peer']['median']:.2f} times" in README.replace("\n", " ")


def test_the_speed_of_eight_bits_is_that_of_the_results() -> None:
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8").split("**In eight bits, with VNNI.**")[1]
    table = page.split("\n\n")[1]
    for name, printed in {"openvino model int8, NumPy steps": "OpenVINO, model graph and NumPy steps, INT8",
                          "openvino frame int8": "OpenVINO, frame graph, INT8",
                          "onnxruntime-cpu model int8, NumPy steps": "ONNX Runtime, model graph and NumPy steps, INT8",
                          "PyTorch eager fp32 cpu": "PyTorch eager, FP32"}.items():
        row = timed("cpu_latency_vnni.json", name)
        (line,) = [line for line in table.splitlines() if f"| {printed}" in line]
        ratio = row["times_faster_than_peer"]
        low, high = ratio["interval"]
        assert f"{row['p50_ms'] / 1000:.2f} s" in line and f"{ratio['median']:.2f} ({low:.2f} to {high:.2f})" in line
    best = timed("cpu_latency_vnni.json", "openvino model int8, NumPy steps")["times_faster_than_peer"]["median"]
    assert f"{best:.2f} times" in README.replace("\n", " ")
