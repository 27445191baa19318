"""What every test can count on: no network, no display, its fair share of the processors, a reason for each skip."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest

# Before torch, matplotlib or a hub client is imported, and inherited by the commands that tests start.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"
os.environ["DPT_MEASURE"] = "0"  # the choice of a backend is deterministic, and the user's cache folder untouched
_workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _workers)))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip GPU tests where no GPU is, and say so."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _gpu_count():
        skip = pytest.mark.skip(reason="needs an NVIDIA GPU, and the driver reports none on this machine")
        for item in marked:
            item.add_marker(skip)


def _gpu_count() -> int:
    """GPUs that the NVIDIA driver offers; asked of the driver itself, so that torch need not be imported."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root folder."""
    return Path(__file__).resolve().parents[1]
