"""The page as it is started by its command, for the tests of the server's process and of the browser."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pytest

from tests.tiny import canonical_bundle, own_bundle, tiny_bundle  # noqa: F401

ROOT = Path(__file__).resolve().parents[2]


class Served(NamedTuple):
    """A running `dpt view`."""

    process: subprocess.Popen[str]
    url: str

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send a signal; the exit status, and what the process printed after it."""
        self.process.send_signal(number)
        rest = self.process.communicate(timeout=30)[0]
        return self.process.returncode, rest


@contextlib.contextmanager
def served(bundle: Path, *options: str, **environment: str) -> Iterator[Served]:
    """Start the command on a free port, and end it."""
    command = [sys.executable, "-W", "error", "-m", "dpt_deploy.view", str(bundle), "--no-browser", "--port", "0"]
    variables = os.environ | {"PYTHONPATH": str(ROOT)} | environment
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env=variables) as process:
        try:
            url, printed = "", []
            while not url and (line := process.stdout.readline()):
                printed.append(line)
                url = line.split()[4] if line.startswith("The page is at ") else ""
            assert url, printed
            yield Served(process, url)
        finally:
            process.kill()


Save = Callable[[str, np.ndarray], Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write an image, uint8 (H, W, 3) RGB, under a name whose suffix is its format."""
    def write(name: str, image: np.ndarray) -> Path:
        path = tmp_path / name
        assert cv2.imwrite(str(path), cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        return path

    return write
