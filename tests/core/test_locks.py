"""Killed commands leave nothing behind for long, and two commands never write into one folder."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

import pytest

from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import locked, replacing, write_text

HOLD = """
import sys, time
from dpt_deploy.core.files import {name}
with {name}({argument!r}) as path:
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hold(root):
    """Starts a process that is inside a context manager of `core.files`."""
    started = []

    def start(name, argument):
        code = HOLD.format(name=name, argument=str(argument))
        process = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def write_in_another_process(root, path):
    code = f"from dpt_deploy.core.files import write_text; write_text({str(path)!r}, 'text')"
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


def test_what_a_killed_process_left_is_removed_by_the_next_one(root, tmp_path, hold):
    process = hold("replacing", tmp_path / "frame.fp16.engine")
    (temporary,) = tmp_path.iterdir()
    assert temporary.name.startswith(".frame.fp16.engine.")
    write_in_another_process(root, tmp_path / "other.txt")
    assert temporary.exists()  # its process is alive
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert temporary.exists()
    write_in_another_process(root, tmp_path / "other.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"other.txt"}


def test_folders_of_others_are_not_touched(root, tmp_path):
    for name in (".cache", ".frame.engine.abcdefgh", "x.dpt-tmp-not"):
        (tmp_path / name).mkdir()
    (tmp_path / "far.dpt-tmp").symlink_to(tmp_path / ".cache")
    write_in_another_process(root, tmp_path / "other.txt")
    assert len(list(tmp_path.iterdir())) == 5


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    write_text(tmp_path / "a", "earlier")
    with pytest.raises(ZeroDivisionError), replacing(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise ZeroDivisionError
    assert (tmp_path / "a").read_text() == "earlier" and len(list(tmp_path.iterdir())) == 1


def test_a_folder_is_written_by_one_command_at_a_time(tmp_path, hold):
    process = hold("locked", tmp_path)
    with pytest.raises(BadInput, match="another process is writing here"), locked(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    with locked(tmp_path):
        assert not list(tmp_path.iterdir())
    with locked(tmp_path):
        pass


@pytest.mark.parametrize("create", [True, False])
def test_who_waited_has_no_lock_on_a_folder_that_was_removed_meanwhile(tmp_path, create):
    folder, seen, ready = tmp_path / "new", [], threading.Event()

    def wait():
        ready.set()
        with locked(folder, create=create, wait=True):
            seen.append(folder.is_dir())
            if create:
                with pytest.raises(BadInput, match="another process is writing here"), locked(folder):
                    pass

    thread = threading.Thread(target=wait)
    with locked(folder, create=True):
        thread.start()
        ready.wait()
        time.sleep(0.2)  # until it waits for the lock; it passes too if it does not yet
    thread.join(10)
    assert seen == [create] and not folder.exists()


def test_a_folder_that_stays_empty_is_removed_again(tmp_path):
    folder = tmp_path / "new"
    with pytest.raises(ZeroDivisionError), locked(folder, create=True):
        assert folder.is_dir()
        raise ZeroDivisionError
    assert not folder.exists()
    with locked(folder, create=True):
        write_text(folder / "a", "text")
    assert (folder / "a").exists()
    with locked(tmp_path / "absent"):
        pass
    assert not (tmp_path / "absent").exists()
