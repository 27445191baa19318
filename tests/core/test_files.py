"""A write that fails: its one cause, and advice that fits it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpt_deploy.core import files
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import cannot_write, replacing, unwritable, write_text

SPACE, PERMISSION, READ_ONLY, FILE = "Free ", "permission", "read-only", "is a file"
ADVICE = {
    errno.ENOSPC: SPACE, errno.EDQUOT: SPACE, errno.EACCES: PERMISSION, errno.EPERM: PERMISSION, errno.EROFS: READ_ONLY,
    errno.ENAMETOOLONG: "shorter", errno.EIO: "fault", errno.EFBIG: "ulimit",
}


@pytest.fixture
def locked() -> Iterator[Path]:
    """A folder in which this process can create nothing."""
    folder = Path(tempfile.mkdtemp())
    os.chmod(folder, 0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    shutil.rmtree(folder)


@pytest.mark.parametrize("code", ADVICE, ids=errno.errorcode.get)
def test_each_cause_has_its_own_advice(code: int, tmp_path: Path) -> None:
    message = str(cannot_write(tmp_path / "x", OSError(code, os.strerror(code))))
    assert os.strerror(code) in message and ADVICE[code].lower() in message.lower()
    if ADVICE[code] != SPACE:
        assert "free" not in message.lower()


def test_a_folder_without_permission(locked: Path) -> None:
    for write in (lambda: write_text(locked / "a.txt", ""), lambda: write_text(locked / "deep" / "a.txt", "")):
        with pytest.raises(BadInput, match=r"Permission denied.*permissions") as caught:
            write()
        assert "space" not in str(caught.value)
    assert "permission" in unwritable(locked) and "permission" in unwritable(locked / "not" / "yet")


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for path in (tmp_path / "taken" / "a.txt", tmp_path / "taken" / "deep" / "a.txt"):
        with pytest.raises(BadInput, match=r"taken is a file, and a folder is needed there"):
            write_text(path, "")


def test_a_folder_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(BadInput, match="A folder has the name of the file"):
        write_text(tmp_path / "a.txt", "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"No space left on device\. Free disk space"), replacing(tmp_path / "a"), \
            open("/dev/full", "w") as full:
        full.write("x")
    assert not list(tmp_path.iterdir())


def test_a_library_that_hides_the_reason_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = RuntimeError("writer failed")
    assert "Free" not in str(cannot_write(tmp_path / "a", error))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 4096}))
    assert "Free disk space" in str(cannot_write(tmp_path / "a", error))


def test_a_folder_that_can_be_written_stays_as_it_is(tmp_path: Path) -> None:
    assert unwritable(tmp_path) is None and unwritable(tmp_path / "not" / "yet") is None
    assert not list(tmp_path.iterdir())
