"""One command for everything: it is listed, it starts, old spellings name the new one, and statuses mean the same."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from dpt_deploy import __version__, cli
from dpt_deploy.cli import commands
from dpt_deploy.core.errors import BadInput, MissingPackage

ROOT = Path(__file__).resolve().parents[2]


def start(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int | None:
    """The exit status of `dpt ARGUMENTS` in this process; None if it returned."""
    monkeypatch.setattr(sys, "argv", ["dpt", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        commands.main()
    except SystemExit as caught:
        return caught.code
    return None


def test_the_help_page_lists_every_command_and_fits_a_screen() -> None:
    lines = commands.help_page().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100
    for name, row in commands.ROWS.items():
        assert [line for line in lines if line.split()[:1] == [name] and row.help in line]
    assert all(status in lines[-1] for status in ("0 ", "1 ", "2 ", "130 "))


def test_every_module_of_the_table_declares_its_command() -> None:
    for row in commands.ROWS.values():
        path = (ROOT / row.module.replace(".", "/")).with_suffix(".py")
        names = [ast.unparse(node.targets[0]) for node in ast.parse(path.read_text(encoding="utf-8")).body
                 if isinstance(node, ast.Assign)]
        assert "COMMAND" in names, path


def test_help_version_and_unknown_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ((), ("--help",), ("-h",)):
        assert start(monkeypatch, *arguments) is None and "usage: dpt" in capsys.readouterr().out
    assert start(monkeypatch, "--version") is None and __version__ in capsys.readouterr().out
    assert start(monkeypatch, "exprot") == 2 and "expected one of export" in capsys.readouterr().err
    assert start(monkeypatch, "completion", "csh") == 2 and "bash or zsh" in capsys.readouterr().err


@pytest.mark.parametrize("name", commands.ROWS)
def test_help_reads_well(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert start(monkeypatch, name, "--help") == 0
    text = capsys.readouterr().out
    assert f"usage: dpt {name} " in text
    assert "None" not in text and str(ROOT) not in text and "tyro" not in text
    assert max(map(len, text.splitlines()[1:])) <= 80


@pytest.mark.parametrize("shell", commands.SHELLS)
def test_completion_knows_commands_and_options(shell: str, monkeypatch: pytest.MonkeyPatch,
                                               capsys: pytest.CaptureFixture[str]) -> None:
    assert start(monkeypatch, "completion", shell) is None
    script = capsys.readouterr().out
    assert all(name in script for name in commands.ROWS) and "--fp32-modules" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(("words", "new"), [
    (("export", "x.pth", "--fp32", "decoder"), "--fp32-modules"),
    (("export", "x.pth", "--batch", "1", "4"), "--batch-range"),
    (("export", "x.pth", "--frame-size=64", "128"), "--frame-size-range"),
    (("export", "x.pth", "--seed", "1"), "omit it"),
    (("build", "x", "--precision", "fp16"), "--precisions"),
    (("parity", "x", "--reference", "y.pth"), "--checkpoint"),
    (("predict", "x", "y", "--frames", "3"), "--max-frames"),
])
def test_an_old_spelling_names_the_new_one(words: tuple[str, ...], new: str, monkeypatch: pytest.MonkeyPatch,
                                           capsys: pytest.CaptureFixture[str]) -> None:
    assert start(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: --") and new in error and error.count("\n") == 1


@dataclass(frozen=True)
class Nothing:
    """A command without options."""


def test_exit_statuses(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def bad(_: Nothing) -> int:
        raise BadInput("expected this, received that")

    def interrupted(_: Nothing) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys, "argv", ["nothing"])
    for main, status in ((lambda _: None, 0), (lambda _: 1, 1), (bad, 2), (interrupted, 130)):
        with pytest.raises(SystemExit) as caught:
            cli.run(Nothing, main, "nothing")
        assert caught.value.code == status
    assert "error: expected this, received that" in capsys.readouterr().err


def test_a_missing_package_is_one_sentence_with_a_command_that_works(tmp_path: Path) -> None:
    checkpoint = tmp_path / "best_model.pth"
    checkpoint.touch()
    blocked = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
sys.argv = ["dpt", "export", {str(checkpoint)!r}, "--builder", "none"]
from dpt_deploy.cli.commands import main
main()
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", blocked], capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: torch is needed") and "python -m pip install" in done.stderr


def test_a_train_py_in_the_working_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("raise SystemExit('the wrong train')")
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-m", "dpt_deploy", "synthesize", "--help"], cwd=tmp_path,
                          capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "dpt synthesize" in done.stdout, done.stderr


def test_a_module_of_training_is_found_and_a_missing_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    module = commands.training_module("train.labelled")
    assert module.__name__.rpartition(".")[2] == "labelled" and callable(module.open_labelled)

    def missing(name: str) -> None:
        raise ImportError("no torch", name="torch.nn")

    monkeypatch.setattr(commands.importlib, "import_module", missing)
    with pytest.raises(MissingPackage, match=r"torch.* is needed to read labelled data and is not installed\. Run: "):
        commands.training_module("train.labelled")

    def broken(name: str) -> None:
        raise ImportError("our own fault", name="dpt_train.labelled")

    monkeypatch.setattr(commands.importlib, "import_module", broken)
    with pytest.raises(ImportError, match="our own fault"):
        commands.training_module("train.labelled")
