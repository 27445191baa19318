"""A shell in which the project counts as installed, and the tiny bundle with its checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny import tiny_bundle

__all__ = ["tiny_bundle"]

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"dpt": "-m dpt_deploy", "python": "", "pytest": "-m pytest"}
CHECKPOINT = "tiny.pth"  # beside the tiny bundle
Run = Callable[..., "subprocess.CompletedProcess[str]"]


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
