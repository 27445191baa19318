"""The examples run as their docstrings say, except those that need a GPU, which say so."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

from dpt_deploy.report.writers import write_png
from tests.docs.conftest import CHECKPOINT, ROOT, Run
from tests.tiny import photo

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.fixture
def clone(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A folder with the examples, a bundle where they expect it, and an image."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    shutil.copytree(tiny_bundle, tmp_path / "engines" / "best_model")
    shutil.copy(tiny_bundle.parent / CHECKPOINT, tmp_path / "best_model.pth")
    write_png(tmp_path / "photo.png", photo(96, 128))
    return tmp_path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_a_docstring_says_what_it_shows_and_how_to_run_it(path: Path) -> None:
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert text and f"    python examples/{path.name} " in text


@pytest.mark.parametrize("command", [
    "run_image.py absent photo.png result", "run_video.py absent clip.mp4", "judge_bundle.py absent",
    "custom_backend.py absent", "export_checkpoint.py absent.pth engines/new",
])
def test_bad_input_is_one_sentence_and_status_2(tmp_path: Path, command: str) -> None:
    done = subprocess.run([sys.executable, ROOT / "examples" / command.split()[0], *command.split()[1:]], cwd=tmp_path,
                          env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1, done.stderr
    assert not list(tmp_path.iterdir())


def test_exporting(clone: Path, shell: Run) -> None:
    """The graphs of the tiny bundle are reused; tests/export makes them anew."""
    done = shell("python examples/export_checkpoint.py best_model.pth engines/best_model", clone)
    assert "passed   ONNX Runtime frame fp32: depth AbsRel" in done.stdout and "PASSED" in done.stdout


def test_an_image(clone: Path, shell: Run) -> None:
    done = shell("python examples/run_image.py engines/best_model photo.png result", clone)
    assert "runs frame.fp" in done.stdout and (clone / "result.npz").is_file()


def test_a_video(clone: Path, shell: Run) -> None:
    writer = cv2.VideoWriter(str(clone / "people.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (128, 96))
    for seed in range(3):
        writer.write(photo(96, 128, seed)[..., ::-1].copy())
    writer.release()
    done = shell("python examples/run_video.py engines/best_model people.avi", clone)
    assert len(re.findall("^frame ", done.stdout, re.MULTILINE)) == 3


def test_arrays_on_a_gpu_without_a_gpu(clone: Path, shell: Run) -> None:
    done = shell("CUDA_VISIBLE_DEVICES= python examples/run_gpu_arrays.py engines/best_model", clone, expected=2)
    assert "NVIDIA GPU" in done.stderr


def test_judging_and_a_backend_of_ones_own(clone: Path, shell: Run) -> None:
    assert "PASSED" in shell("python examples/judge_bundle.py engines/best_model", clone).stdout
    assert "Frugal frame fp32: passed" in shell("python examples/custom_backend.py engines/best_model", clone).stdout


def test_a_changed_bundle_fails(clone: Path, shell: Run) -> None:
    graph = clone / "engines/best_model/frame.fp32.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])
    done = shell("python examples/judge_bundle.py engines/best_model", clone, expected=1)
    assert "does not match manifest.json" in done.stdout


def test_parity_in_ones_own_ci(clone: Path, shell: Run) -> None:
    done = shell("pytest -q examples/ci --dpt-bundle engines/best_model", clone)
    assert re.search(r"\d\d passed", done.stdout) and "failed" not in done.stdout
