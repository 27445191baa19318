"""Names are printed as they are: what looks like markup of the terminal library stays text in every command."""

from __future__ import annotations

import ast
import re
import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from rich.table import Table

from dpt_deploy.cli import commands
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.report.terminal import plain_console, print_outcome
from tests.tiny import photo

ROOT = Path(__file__).resolve().parents[2]
MARKUP = "[1] [b] [red] [link=x] :dog:"  # a closing tag has a slash, which a name of a folder and a file make
FOLDER = "runs [b]"
CLOSING = "[/b]"  # the folder "[" and in it "b]"; after markup is read, an error


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit status and output of `dpt ARGUMENTS` on a wide terminal, without line breaks and the space around them."""
    monkeypatch.setattr(sys, "argv", ["dpt", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        commands.main()
    said = capsys.readouterr()
    return ended.value.code or 0, said.out + said.err


@pytest.fixture
def odd_folder(tmp_path: Path) -> Path:
    folder = tmp_path / FOLDER / "[" / "b]" / MARKUP
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def odd_bundle(tiny_bundle: Path, odd_folder: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, odd_folder / "bundle"))


def test_predict_prints_names(monkeypatch, capsys, odd_bundle: Path, odd_folder: Path) -> None:
    inputs = odd_folder / "in"
    inputs.mkdir()
    cv2.imwrite(str(inputs / f"shot {MARKUP}.png"), photo(40, 50))
    (inputs / f"bad {MARKUP}.png").write_bytes(b"no image")
    status, said = run(monkeypatch, capsys, "predict", odd_bundle, inputs, "--out", odd_folder / "out")
    assert status == 1
    for text in (f"shot {MARKUP}.png ", f"shot {MARKUP}.panel.png", f"skipped  {inputs}/bad {MARKUP}.png",
                 f"Written to {odd_folder / 'out'}"):
        assert text in said, text
    film = odd_folder / f"film {MARKUP}.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 10, (50, 40))
    for _ in range(2):
        writer.write(np.zeros((40, 50, 3), np.uint8))
    writer.release()
    status, said = run(monkeypatch, capsys, "predict", odd_bundle, film, "--out", odd_folder / "out")
    assert status == 0 and f"2 frames written to {odd_folder}/out/film {MARKUP}.panel.mp4" in said
    status, said = run(monkeypatch, capsys, "predict", odd_bundle, odd_folder / f"no {MARKUP}.png")
    assert status == 2 and f"{odd_folder}/no {MARKUP}.png: expected images, found none" in said


def test_doctor_prints_names(monkeypatch, capsys, odd_bundle: Path) -> None:
    status, said = run(monkeypatch, capsys, "doctor", odd_bundle)
    assert f"Bundle {odd_bundle}" in said and status in (0, 1)


def test_the_outcome_of_an_export_prints_names(monkeypatch, capsys, odd_bundle: Path) -> None:
    monkeypatch.setenv("COLUMNS", "1000")
    bundle = Bundle.open(odd_bundle)
    print_outcome(bundle, bundle.last_report(), [f"time {CLOSING}"])
    said = capsys.readouterr().out
    assert f"Bundle {odd_bundle}" in said and f"report   {odd_bundle}/report.html" in said and CLOSING in said


@pytest.mark.parametrize("arguments", [
    ("export", "{}.pth"), ("build", "{}"), ("parity", "{}"), ("evaluate", "{}", "--data-root", "{}"),
    ("check-data", "--data-root", "{}"), ("prepare", "--data-root", "{}", "--out", "{}"),
    ("train", "--data-root", "{}"),
], ids=lambda arguments: arguments[0])
def test_errors_print_names(monkeypatch, capsys, tmp_path: Path, arguments: tuple[str, ...]) -> None:
    name = f"{tmp_path}/missing {CLOSING} {MARKUP}"
    status, said = run(monkeypatch, capsys, *(one.replace("{}", name) for one in arguments))
    assert status == 2 and name in said, said


def test_data_commands_print_names(monkeypatch, capsys, odd_folder: Path) -> None:
    data = odd_folder / "data"
    status, _ = run(monkeypatch, capsys, "synthesize", "--out", data, "--count", 4, "--image-size", 32, "--workers", 0)
    assert status == 0
    broken = next(data.rglob("rgb_*.png"))
    broken.write_bytes(b"no image")
    status, said = run(monkeypatch, capsys, "prepare", "--data-root", data, "--out", odd_folder / "cache",
                       "--input-size", 32, "--workers", 0)
    assert status == 1 and str(odd_folder) in said, said


def test_tables_titles_and_cells_are_text(capsys) -> None:
    table = Table(f"column {MARKUP}", title=f"title {CLOSING}{MARKUP}", caption=f"caption {CLOSING}")
    table.add_row(f"cell {CLOSING}{MARKUP}")
    plain_console(width=200).print(table, f"text {CLOSING}{MARKUP}")
    said = capsys.readouterr().out
    for what in (f"column {MARKUP}", f"title {CLOSING}{MARKUP}", f"caption {CLOSING}", f"cell {CLOSING}{MARKUP}",
                 f"text {CLOSING}{MARKUP}"):
        assert what in said


def test_every_console_is_made_by_plain_console() -> None:
    """Rich takes text for markup in each console and each column of a progress bar that does not say otherwise."""
    for path in (*ROOT.glob("dpt_deploy/**/*.py"), *ROOT.glob("train/**/*.py"), *ROOT.glob("benchmarks/*.py"),
                 *ROOT.glob("demo/*.py"), *ROOT.glob("examples/**/*.py")):
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"\bfrom_markup\(|\bmarkup=True|rich import print", source), path
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            options = {one.arg: ast.unparse(one.value) for one in node.keywords}
            if name == "Console":
                assert options.get("markup") == options.get("emoji") == "False", f"{path}:{node.lineno}"
            if name == "TextColumn" and "task." in ast.unparse(node):
                assert options.get("markup") == "False", f"{path}:{node.lineno}"
