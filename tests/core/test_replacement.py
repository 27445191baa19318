"""A bundle takes the place of an earlier one whole, or the folder stays as it was, with the files of the user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dpt_deploy.core.bundle import MANIFEST, Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.files import write_text
from dpt_deploy.core.manifest import Checkpoint, Manifest
from dpt_deploy.core.replacement import begin_apart, check_free, take_place

HEADER = Manifest(name="x", contract=Contract().to_json())


def make(folder: Path, text: str, *names: str, header: Manifest = HEADER) -> Bundle:
    bundle = Bundle.create(folder, header)
    folder.mkdir(exist_ok=True)
    for name in names:
        write_text(folder / name, text)
        bundle.add(name, "cache" if name.endswith(".cache") else "report")
    return bundle


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() if path.is_file() else "a folder" for path in folder.iterdir()}


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    make(tmp_path / "out", "old", "parity.json", "report.html", "old.txt", "timing.cache")
    (tmp_path / "out" / "notes.txt").write_text("of the user")
    (tmp_path / "out" / "latency.json").write_text("measured")
    return tmp_path / "out"


def replaced(earlier: Path, tmp_path: Path) -> Bundle:
    (tmp_path / "apart").mkdir()
    begin_apart(tmp_path / "apart", earlier, ["latency.json", "nothing"])
    other = HEADER.model_copy(update={"checkpoint": Checkpoint(sha256="0" * 64)})
    return make(tmp_path / "apart", "new", "parity.json", "new.txt", header=other)


def test_the_files_of_an_earlier_bundle_go_and_those_of_the_user_stay(earlier: Path, tmp_path: Path) -> None:
    bundle = take_place(replaced(earlier, tmp_path), earlier)
    found = contents(earlier)
    assert found.pop(MANIFEST) and bundle.folder == earlier and Bundle.open(earlier).manifest == bundle.manifest
    assert found == {"parity.json": "new", "new.txt": "new", "timing.cache": "old", "notes.txt": "of the user",
                     "latency.json": "measured"}
    assert all(bundle.intact(artifact) for artifact in bundle.artifacts)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=["full", "Ctrl-C"])
@pytest.mark.parametrize("step", range(4))
def test_a_failure_on_the_way_leaves_the_folder_as_it_was(
    earlier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, error: BaseException
) -> None:
    before, made = contents(earlier), replaced(earlier, tmp_path)
    assert contents(earlier) == before
    replace, calls = os.replace, []

    def failing(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == step + 1:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(BadInput if isinstance(error, OSError) else KeyboardInterrupt):
        take_place(made, earlier)
    assert contents(earlier) == before


def test_a_folder_in_the_place_of_a_file_is_one_sentence(earlier: Path, tmp_path: Path) -> None:
    (earlier / "new.txt").mkdir()
    before, made = contents(earlier), replaced(earlier, tmp_path)
    with pytest.raises(BadInput, match="cannot write"):
        take_place(made, earlier)
    assert contents(earlier) == before


@pytest.mark.parametrize("name", ["reference.npz", "model.fp32.onnx", "frame.fp16.onnx.data", "MODEL_CARD.md",
                                  "frame.fp16.rtx1.7.engine", "timing.trt11.4-sm90.cache"])
def test_files_of_the_user_are_not_replaced(tmp_path: Path, name: str) -> None:
    folder, made = tmp_path / "out", make(tmp_path / "apart", "new", "report.html")
    check_free(folder)
    folder.mkdir()
    (folder / "model.pth").write_text("of the user")
    check_free(folder)
    (folder / name).write_text("of the user")
    for refused in (lambda: check_free(folder), lambda: take_place(made, folder)):
        with pytest.raises(BadInput, match=rf"received {name}, which would be replaced\. Choose another folder"):
            refused()
    assert set(contents(folder).values()) == {"of the user"}


def test_a_bundle_that_is_discarded_takes_only_its_own_files(tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text("of the user")
    (tmp_path / MANIFEST).write_text("cannot be read")
    bundle = make(tmp_path, "new", "parity.json")
    (tmp_path / "MODEL_CARD.md").write_text("half of a verdict")
    bundle.discard()
    assert contents(tmp_path) == {"report.html": "of the user"}
    (tmp_path / MANIFEST).write_text("cannot be read")
    Bundle.create(tmp_path, HEADER).discard()
    assert set(contents(tmp_path)) == {"report.html", MANIFEST}
