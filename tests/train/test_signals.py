"""A run that is asked to stop, at any moment and by any signal, as batch systems and terminals send them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from train.config import TrainConfig
from train.loop.trainer import Trainer

from .test_trainer import assert_same_bits, table

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = {"epochs": 2, "ema": 0.9, "batch_size": 4}
MOMENTS = {
    "data": "train.loop.setup.measure",
    "start of readers": "train.data.dataset.reader_context",
    "reading": "train.loop.trainer.Trainer._next",
    "step": "train.loop.step.Stepper.per_image",
    "validation": "train.monitoring.scores.Scores.add",
    "saving": "train.loop.state.save",
    "writing weights": "train.loop.trainer.save_checkpoint",
    "sampling": "train.loop.validation.SamplePicture.draw",
    "curves": "train.monitoring.run_log.write_curves",
}

# The command itself, which signals its own group when a function is called, and once more, as `timeout` does.
SIGNALLED = """
import os, sys
from importlib import import_module
from train.__main__ import COMMAND

def main():
    path, number, call = sys.argv.pop(1), int(sys.argv.pop(1)), int(sys.argv.pop(1))
    parts = path.split(".")
    last = next(n for n in range(len(parts) - 1, 0, -1) if parts[n - 1].islower())
    owner = import_module(".".join(parts[:last]))
    for name in parts[last:-1]:
        owner = getattr(owner, name)
    original, calls = getattr(owner, parts[-1]), []

    def signalling(*args, **kwargs):
        calls.append(0)
        if len(calls) == call:
            os.killpg(0, number)
            os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, parts[-1], signalling)
    COMMAND.run()

if __name__ == "__main__":
    main()
"""


def written(run: TrainConfig, path: Path) -> Path:
    """The options of a run as a file for --config."""
    path.write_text(yaml.safe_dump({k: v for k, v in run.to_json().items() if k not in ("config", "resume")}))
    return path


def await_save(folder: Path) -> None:
    """Wait until a run has saved for the first time."""
    deadline = time.monotonic() + 60
    while not (folder / "last.pth").exists() and time.monotonic() < deadline:
        time.sleep(0.1)


def start(arguments: list[str], **environment: str) -> subprocess.Popen:
    """A Python process in a session of its own."""
    return subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)} | environment)


def alive_in_session(session: int) -> list[int]:
    """Processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def await_end(session: int, seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := alive_in_session(session)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As in the processes that `start` starts: sums depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing stopped."""
    out = tmp_path_factory.mktemp("whole") / "run"
    Trainer(small(data, out)).run()
    return out


def small(data: Path, out: Path, **changes) -> TrainConfig:
    return TrainConfig(**{
        "data_root": data, "out": out, "lr": 1e-3, "backbone": "test_vit", "backbone_kwargs": ("img_size=64",),
        "features": 8, "pretrained": False, "depth_scale": 1.0, "val_fraction": 0.2, "workers": 0,
        "tensorboard": False, "samples": 3, "device": "cpu", **EPOCHS, **changes})


CASES = [("step", 3, "SIGTERM"), *(pytest.param(*case, marks=pytest.mark.slow) for case in (
    ("data", 1, "SIGTERM"), ("start of readers", 1, "SIGTERM"), ("reading", 1, "SIGINT"), ("reading", 6, "SIGTERM"),
    ("step", 2, "SIGUSR1"), ("step", 2, "SIGHUP"), ("validation", 1, "SIGTERM"), ("saving", 1, "SIGTERM"),
    ("writing weights", 2, "SIGINT"), ("sampling", 1, "SIGTERM"), ("curves", 1, "SIGUSR2"),
))]


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are of POSIX")
@pytest.mark.parametrize(("moment", "call", "name"), CASES)
def test_a_signal_to_the_group_saves_at_any_moment(data, whole, tmp_path, moment, call, name):
    script, number = tmp_path / "signalled.py", signal.Signals[name]
    script.write_text(SIGNALLED)
    out = tmp_path / "run"
    path = written(small(data, out, workers=2), tmp_path / "run.yaml")
    process = start([str(script), MOMENTS[moment], str(int(number)), str(call), "--config", str(path)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert f"received {name}" in errors
    assert "Traceback" not in errors and "unexpectedly" not in errors
    assert await_end(process.pid, 10) == [], "readers outlive the run"
    if moment in ("data", "start of readers"):
        assert "nothing had to be saved" in errors
        assert not out.exists()
    else:
        assert "--resume auto" in errors
        assert (out / "last.pth").exists()
    trainer = Trainer(small(data, out, resume="auto"))
    trainer.run()
    assert_same_bits(out / "final_model.pth", whole / "final_model.pth")
    assert_same_bits(out / "best_model.pth", whole / "best_model.pth")
    assert [row["val_loss"] for row in table(out)] == [row["val_loss"] for row in table(whole)]
    assert not list(out.glob(".*"))


@pytest.mark.slow
def test_a_signal_does_not_wait_for_data_that_does_not_come(data, tmp_path):
    script = tmp_path / "stalled.py"
    # The readers import train.data.dataset themselves, so the file system stalls, not a function: a named pipe.
    script.write_text("from train.__main__ import COMMAND\nif __name__ == '__main__':\n    COMMAND.run()\n")
    root = tmp_path / "data"
    shutil.copytree(data, root)
    path = written(small(root, tmp_path / "run", workers=2, epochs=500, check_data=False), tmp_path / "run.yaml")
    process = start([str(script), "--config", str(path)])
    try:
        await_save(tmp_path / "run")
        for image in root.rglob("rgb_*"):
            os.mkfifo(image.with_suffix(".fifo"))
            image.with_suffix(".fifo").replace(image)
        time.sleep(3)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - began < 30, "within the grace of batch systems"
    finally:
        for pid in alive_in_session(process.pid):
            os.kill(pid, signal.SIGKILL)
    assert process.returncode == 143, errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_readers_end_with_a_run_that_is_killed(data, tmp_path):
    path = written(small(data, tmp_path / "run", workers=2, epochs=500, save_minutes=0.05), tmp_path / "run.yaml")
    process = start(["-m", "train", "--config", str(path)])
    await_save(tmp_path / "run")
    assert len(alive_in_session(process.pid)) >= 3
    process.kill()
    left = await_end(process.pid, 10)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert left == []


@pytest.mark.slow
def test_a_reader_that_is_killed_ends_the_run_with_a_sentence(data, tmp_path):
    path = written(small(data, tmp_path / "run", workers=1, epochs=5000, keep=1), tmp_path / "run.yaml")
    process = start(["-m", "train", "--config", str(path)])
    await_save(tmp_path / "run")
    for pid in alive_in_session(process.pid):
        if "pt_data_worker" in Path(f"/proc/{pid}/comm").read_text():
            os.kill(pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 2, errors
    assert "fewer --workers" in errors and "Traceback" not in errors


TWO_PROCESSES = """
import os
from train.__main__ import COMMAND
from train.{module} import {owner}

original, calls = {owner}.{name}, []

def signalling(*args, **kwargs):
    calls.append(0)
    if os.environ["RANK"] == "1" and len(calls) == 2:
        os.kill(os.getpid(), {number})
    return original(*args, **kwargs)

if __name__ == "__main__":
    {owner}.{name} = signalling
    COMMAND.run()
"""


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "module", "name"), [
    ("Stepper", "loop.step", "per_image"), ("Scores", "monitoring.scores", "add"),
    ("Trainer", "loop.trainer", "_save_weights"),
])
def test_a_signal_to_one_of_two_processes_stops_both(data, tmp_path, owner, module, name):
    # torchrun ends the other process soon after one has left, so none may leave before all is written.
    common = {"batch_size": 2, "max_train_batches": 3, "ema": 0.0}
    script = tmp_path / "two.py"
    script.write_text(TWO_PROCESSES.format(number=int(signal.SIGTERM), owner=owner, module=module, name=name))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    path = written(small(data, tmp_path / "run", **common), tmp_path / "run.yaml")
    process = start([*torchrun, str(script), "--config", str(path)])
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1, "torchrun's own"
    assert "exitcode  : 143" in errors, errors
    assert errors.count("continue with --resume auto") == 1
    assert "RuntimeError" not in errors
    assert (tmp_path / "run" / "last.pth").exists()
    for out, more in (("run", ["--resume", "auto"]), ("whole", ["--out", str(tmp_path / "whole")])):
        process = start([*torchrun, "-m", "train", "--config", str(path), *more])
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert (tmp_path / out / "final_model.pth").exists()
    assert_same_bits(tmp_path / "run" / "final_model.pth", tmp_path / "whole" / "final_model.pth")
