"""The shared option types: one spelling for each thing, and an error that names the option."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import tyro

from dpt_deploy.cli.help import parse
from dpt_deploy.cli.options import (
    MOST_WORKERS,
    Batches,
    BatchRange,
    Count,
    FrameSizes,
    Heads,
    Json,
    Limit,
    Precisions,
    Size,
    SizeRange,
    Workers,
    check_renamed,
    resolve_workers,
)
from dpt_deploy.core.errors import BadInput


@dataclass(frozen=True)
class Inner:
    """A group of options."""

    batch_range: BatchRange = (1, 8)
    """Smallest and largest batch."""
    frame_size_range: SizeRange = ((64, 64), (2160, 3840))
    """Smallest and largest frame."""


@dataclass(frozen=True)
class Options:
    """Every shared type."""

    source: tyro.conf.Positional[Path]
    """A positional argument
    whose help takes two lines."""
    input_size: Size | None = None
    """A size."""
    frame_sizes: FrameSizes = ((480, 640),)
    """Sizes."""
    heads: Heads | None = None
    """Heads."""
    precisions: Precisions = ()
    """Precisions."""
    batches: Batches = (1, 2)
    """Batches."""
    workers: Workers = "auto"
    """Processes."""
    max_images: Limit = None
    """A limit."""
    rounds: Count = 3
    """A number."""
    json: Json = False
    search: bool = True
    """A flag that is on."""
    inner: Inner = field(default_factory=Inner)


def options(*arguments: str, default: Any = None) -> Options:
    return parse(Options, "options", default, ["here", *arguments])


def test_defaults_are_those_of_the_class() -> None:
    assert options() == Options(Path("here"))


@pytest.mark.parametrize(("arguments", "name", "value"), [
    (("--input-size", "384"), "input_size", (384, 384)),
    (("--input-size", "720X1280"), "input_size", (720, 1280)),
    (("--frame-sizes", "64,480x640"), "frame_sizes", ((64, 64), (480, 640))),
    (("--heads", "depth, alpha"), "heads", ("depth", "alpha")),
    (("--precisions=fp16,fp32",), "precisions", ("fp16", "fp32")),
    (("--batches", "1,2,4"), "batches", (1, 2, 4)),
    (("--workers", "0"), "workers", 0),
    (("--workers", "auto"), "workers", "auto"),
    (("--max-images", "5"), "max_images", 5),
    (("--json",), "json", True),
    (("--no-search",), "search", False),
    (("--batch-range", "1,4"), "inner", Inner(batch_range=(1, 4))),
    (("--frame-size-range", "32,64x128"), "inner", Inner(frame_size_range=((32, 32), (64, 128)))),
])
def test_a_value_is_read(arguments: tuple[str, ...], name: str, value: Any) -> None:
    assert getattr(options(*arguments), name) == value


@pytest.mark.parametrize(("arguments", "words"), [
    (("--input-size", "abc"), "a size such as 384 or 720x1280"),
    (("--input-size", "0"), "a size"),
    (("--input-size", "1x2x3"), "a size"),
    (("--heads", "depth,albedo"), "albedo"),
    (("--heads", "depth,depth"), "each value once"),
    (("--batches", "1,0"), "from 1"),
    (("--precisions", "fp16,"), "an empty one"),
    (("--workers", "-1"), "from 0"),
    (("--max-images", "0"), "from 1"),
    (("--rounds", "three"), "from 1"),
    (("--batch-range", "3"), "2 values"),
])
def test_a_bad_value_is_one_sentence_that_names_the_option(arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(BadInput, match=f"^{arguments[0]}: expected .*{words}"):
        options(*arguments)


def test_none_is_no_value(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--heads", "None")
    assert "leave the option out" in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_help_names_values(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parse(Options, "options", arguments=["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    for words in ("--input-size HEIGHTxWIDTH", "--workers N|auto", "--max-images N", "--heads HEAD,...", "SOURCE",
                  "(default: 64x64,2160x3840)", "(default: 1,8)", "argument whose help takes two lines"):
        assert words in text
    assert "None" not in text and "False" not in text and "--no-json" not in text


def test_values_from_a_file_take_the_place_of_defaults() -> None:
    given = Options(Path("there"), heads=("alpha",), workers=2)
    found = options("--workers", "3", default=given)
    assert (found.heads, found.workers, found.source) == (("alpha",), 3, Path("here"))


def test_workers_are_at_most_eight() -> None:
    assert 1 <= resolve_workers("auto") <= MOST_WORKERS
    assert resolve_workers(0) == 0 and resolve_workers(20) == 20


def test_renamed_options() -> None:
    check_renamed(["--new", "x", "old", "--", "--old"], {"--old": "--new"})
    for words in (["--old"], ["--old=3"], ["x", "--old", "3"]):
        with pytest.raises(BadInput, match="--old was renamed: use --new"):
            check_renamed(words, {"--old": "--new"})
    with pytest.raises(BadInput, match="--old: gone"):
        check_renamed(["--old"], {"--old": "gone"})
