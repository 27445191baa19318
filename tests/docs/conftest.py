"""A tiny model's checkpoint and its bundle without engines; a shell in which the project counts as installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dpt_deploy.model import save_checkpoint
from tests.tiny import lively_model

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"dpt": "-m dpt_deploy", "python": "", "pytest": "-m pytest"}
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "best_model.pth"
    save_checkpoint(path, lively_model())
    return path


@pytest.fixture(scope="session")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs lines of bash as if the project were installed, without this clone as the working folder."""
    scripts = tmp_path_factory.mktemp("bin")
    for name, arguments in COMMANDS.items():
        script = scripts / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments} "$@"\n')
        script.chmod(0o755)
    variables = os.environ | {
        "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "COLUMNS": "100",
        "PYTEST_ADDOPTS": "-p dpt_deploy.pytest_plugin -p no:cacheprovider",
    }

    def run(lines: str, cwd: Path, expected: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", lines], cwd=cwd, env=variables, capture_output=True,
                              text=True, stdin=subprocess.DEVNULL)
        assert done.returncode == expected, f"{lines}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    return run


@pytest.fixture(scope="session")
def plain_bundle(tiny_checkpoint: Path, shell: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny model, made by the example that exports. Read only."""
    folder = tmp_path_factory.mktemp("plain")
    shutil.copytree(ROOT / "examples", folder / "examples")
    done = shell(f"python examples/export_checkpoint.py {tiny_checkpoint} best_model", cwd=folder)
    assert "PASSED" in done.stdout
    return folder / "best_model"
