"""Progress of long work: a bar on a terminal, lines in a log."""

from __future__ import annotations

import ast
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = "from train.monitoring.progress import progress_bar\nfor _ in progress_bar(range(3), 'work', 3): pass\n"


def test_a_log_gets_lines_without_carriage_returns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train.synthetic", "--out", tmp_path / "data", "--count", "3", "--image-size",
               "32", "--workers", "0"]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, check=True)
    assert b"\r" not in done.stdout + done.stderr and b"\x1b" not in done.stderr
    lines = done.stderr.decode().splitlines()
    assert re.match(r"generate: 3/3 \[", lines[-1]) and len(lines) == len(set(lines)) <= 2


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with subprocess.Popen([sys.executable, "-c", WORK], cwd=ROOT, stderr=theirs, env=os.environ | {"TERM": "xterm"}):
        os.close(theirs)
        seen = b""
        while True:
            try:
                seen += os.read(ours, 4096)
            except OSError:  # the other end is closed
                break
    os.close(ours)
    assert b"\r" in seen and b"3/3" in seen


def test_every_bar_is_made_here() -> None:
    """A bar of tqdm's own would print carriage returns into logs."""
    for path in (*ROOT.glob("train/**/*.py"), *ROOT.glob("benchmarks/*.py"), *ROOT.glob("dpt_deploy/**/*.py")):
        if path.name == "progress.py":
            continue
        calls = [node.lineno for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tqdm", "tqdm.tqdm", "trange")]
        assert not calls, f"{path}: {calls}"
