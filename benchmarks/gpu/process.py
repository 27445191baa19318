"""Run one step in a process of its own, with a time limit, and keep what it reports on the way."""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import environment
from dpt_deploy.core.errors import first_line
from dpt_deploy.core.files import write_json

from .step import Result, Run, Step, require_gpu

POLL = 0.2  # [s]
# A fork copies what this process has imported, so that a step starts at once. CUDA must not be initialised before it.
FORK = multiprocessing.get_context("fork")


def preload() -> None:
    """Import what most steps need, if it is installed. Initialises no GPU."""
    with contextlib.suppress(ImportError):
        import timm  # noqa: F401
        import torch  # noqa: F401


def run_step(step: Step, run: Run, on_partial: Callable[[Result], None]) -> Result:
    """The result of a step: `status` is `ran`, `not run` or `incomplete`, with a `reason` unless it ran.

    Args:
        step: What to run.
        run: What it is given. After `run.limit` seconds it is killed, with every process of its session.
        on_partial: Called with what the step has reported so far, whenever that changes.
    """
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "result.json", Path(folder) / "log"
        process = FORK.Process(target=_child, args=(step, run, file, log))
        _start(process)
        begun = time.perf_counter()
        ended = _wait(process, run.limit, file, on_partial)
        known = _read(file)
        if known.pop("complete", False):
            return known
        reason = f"stopped after its time limit of {run.limit:.0f} s" if not ended else \
            f"the process ended with status {process.exitcode}: {_last_line(log)}"
        status = "incomplete" if known else "not run"
        return known | {"status": status, "reason": reason, "seconds": time.perf_counter() - begun}


def gpu_name() -> str | None:
    """The name of the GPU that PyTorch sees, asked in a process of its own; None if it sees none."""
    receiver, sender = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_send_gpu_name, args=(sender,))
    _start(process)
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()


def _start(process: Any) -> None:
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside threads; those of NumPy's BLAS end with the fork, and hold no lock in it.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()


def _send_gpu_name(sender: Any) -> None:
    with contextlib.suppress(Exception):
        require_gpu()
        import torch

        sender.send(torch.cuda.get_device_name())
    sender.close()


def _child(step: Step, run: Run, file: Path, log: Path) -> None:
    """Run the step here. Its output goes to `log`, and everything it knows to `file`."""
    os.setsid()
    with contextlib.suppress(OSError, AttributeError):  # a killed command leaves no step on the GPU
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    with open(log, "w", buffering=1) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        sys.stdout = sys.stderr = stream
        begun = time.perf_counter()
        mark = {"dry_run": True} if run.dry else {}
        known: Result = {}

        def report(partial: Result) -> None:
            known.update(partial)
            write_json(file, finite(mark | known))

        try:
            run = replace(run, report=report, started=begun)
            if run.dry:
                _use_one_thread()
            result = mark | {"status": "ran"} | step(run)
        except Exception as error:  # libraries raise exceptions of many types
            traceback.print_exc()
            result = mark | known | {"status": "incomplete" if known else "not run", "reason": first_line(error)}
        result |= {"seconds": time.perf_counter() - begun, "host_mb": environment.peak_resident_mb()}
        write_json(file, finite(result | {"complete": True}))
        stream.flush()
        os._exit(0)  # libraries' threads and exit handlers are not waited for


def _use_one_thread() -> None:
    """Tiny networks on several threads wait for each other more than they compute."""
    with contextlib.suppress(ImportError):
        import torch

        torch.set_num_threads(1)


def _wait(process: Any, limit: float, file: Path, on_partial: Callable[[Result], None]) -> bool:
    """Wait for a process, and kill its session after `limit` seconds or if this process is interrupted."""
    until, seen = time.perf_counter() + limit, 0.0
    try:
        while process.is_alive() and time.perf_counter() < until:
            process.join(POLL)
            changed = file.stat().st_mtime if file.exists() else 0.0
            if changed > seen:
                seen, known = changed, _read(file)
                if not known.get("complete"):
                    on_partial(known | {"status": "incomplete", "reason": "this command ended before the step did"})
        return not process.is_alive()
    finally:
        kill_session(process.pid)
        process.join()


def kill_session(leader: int) -> None:
    """Kill every process of a session. Compilers and builders start processes in groups of their own."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                session = int((folder / "stat").read_text().rpartition(")")[2].split()[3])
                if session == leader:
                    os.kill(int(folder.name), signal.SIGKILL)


def finite(value: Any) -> Any:
    """The same JSON value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _read(file: Path) -> Result:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.exists() else []
    return lines[-1][:200] if lines else "no message"
