"""Loading, running and closing again and again keeps memory where it was; a session's calls allocate nothing lasting.

Measured in a process of its own, which does nothing else. The first cycles fill caches of the libraries; what counts is
the growth after them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ALLOWED_MB = 8.0
CODE = """
import ctypes, gc, sys
import numpy as np
from dpt_deploy.runtime import load

def resident():
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the allocator keeps for later is no leak
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6

bundle, backend, first, last = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
frame = np.zeros((64, 64, 3), np.uint8)
if sys.argv[5] == "cycles":
    for i in range(1, last + 1):
        with load(bundle, backend, threads=1) as runtime:
            runtime(frame)
        if i == first:
            start = resident()
else:
    with load(bundle, backend, threads=1) as runtime:
        for i in range(1, last + 1):
            runtime(frame)
            if i == first:
                start = resident()
print(resident() - start)
"""


def grown(bundle: Path, backend: str, first: int, last: int, what: str) -> float:
    """Resident memory after `last` cycles or calls less that after `first` [MB]."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("this system does not tell a process's resident memory")
    command = [sys.executable, "-c", CODE, str(bundle), backend, str(first), str(last), what]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return float(done.stdout)


@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_calls_leave_nothing_behind(tiny_bundle: Path, backend: str) -> None:
    pytest.importorskip(backend.removesuffix("-cpu"), reason=f"{backend} is not installed")
    assert grown(tiny_bundle, backend, 20, 120, "calls") < ALLOWED_MB


def test_cycles_leave_nothing_behind(tiny_bundle: Path) -> None:
    """Short; a whole session kept alive would show as 50 times its size."""
    assert grown(tiny_bundle, "onnxruntime-cpu", 10, 60, "cycles") < ALLOWED_MB


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnxruntime-cpu", "openvino"])
def test_a_thousand_cycles_leave_nothing_behind(tiny_bundle: Path, backend: str) -> None:
    pytest.importorskip(backend.removesuffix("-cpu"), reason=f"{backend} is not installed")
    assert grown(tiny_bundle, backend, 100, 1000, "cycles") < ALLOWED_MB
