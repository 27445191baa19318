"""Files that strangers may have made end in one sentence: no traceback, no hang, no crash, and bounded memory.

Each target runs in a process of its own, with its memory limited and measured. `tests/fuzz/run.py` repeats a failure.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.targets import MB, TARGETS

ROOT = Path(__file__).parents[2]
# Those that write or decode a large file for each case are slower; the numbers keep CI at seconds for each.
COUNTS = {"checkpoint": 60, "description": 60, "video": 40, "graph": 100, "image": 150, "pil": 150}


def fuzz(name: str, count: int, seed: int, folder: Path, timeout: float) -> None:
    command = [sys.executable, "-m", "tests.fuzz.run", name, str(count), str(seed), str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=timeout)
    again = f"python -m tests.fuzz.run {name} {count} {seed} FOLDER"
    last = (folder / "last").read_text() if (folder / "last").exists() else "none, the seeds failed"
    assert result.returncode == 0, f"{again}: status {result.returncode} at case {last}\n{result.stderr[-4000:]}"
    found = json.loads(result.stdout.splitlines()[-1])
    kinds = {failure["error"].strip().splitlines()[-1]: failure for failure in found["failures"]}
    shown = "\n".join(f"case {failure['case']}: {failure['error']}" for failure in list(kinds.values())[:5])
    assert not found["failures"], f"{again}: {len(found['failures'])} of {count} cases, {len(kinds)} kinds\n{shown}"
    assert sum(found["outcomes"].values()) == count
    refused = count - found["outcomes"].get("read", 0)
    assert refused or name == "parity", f"{again}: no mutation was refused, so nothing was tested"
    bound = TARGETS[name].memory
    assert found["growth"] < bound, f"{again}: grew by {found['growth'] / MB:.0f} MB, bound {bound / MB:.0f} MB"


@pytest.mark.parametrize("name", TARGETS)
def test_mutated_files_end_in_one_sentence(name: str, tmp_path: Path) -> None:
    fuzz(name, COUNTS.get(name, 200), 1, tmp_path, 300)


@pytest.mark.slow
@pytest.mark.parametrize("name", TARGETS)
def test_ten_thousand_mutations(name: str, tmp_path: Path) -> None:
    fuzz(name, 10_000, 2, tmp_path, 6 * 3600)
