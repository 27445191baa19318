"""`dpt <command>` and `python -m dpt_deploy <command>`: the table of commands, and what runs them."""

from __future__ import annotations

import contextlib
import importlib
import io
import sys
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from ..core.errors import BadInput, missing_package
from ..core.version import __version__
from . import OURS, Command, exit_on_error, needing

SHELLS = ("bash", "zsh")
CLONE = Path(__file__).resolve().parents[2]


class Row(NamedTuple):
    """One command. Its module has a `COMMAND`, and is imported only when the command runs."""

    name: str
    module: str
    help: str
    extra: str


GROUPS: dict[str, tuple[Row, ...]] = {
    "Deploy": (
        Row("export", "dpt_deploy.export.__main__", "checkpoint to ONNX graphs, engines and a verdict", "export"),
        Row("import", "dpt_deploy.export.importing", "another project's ONNX model to a judged bundle", "export"),
        Row("build", "dpt_deploy.build.__main__", "engines for this machine, from a bundle", "cli"),
        Row("parity", "dpt_deploy.parity.__main__", "judge a bundle against PyTorch FP32", "cli"),
        Row("predict", "dpt_deploy.predict.__main__", "run on images, a video or a camera", "cli"),
        Row("view", "dpt_deploy.view.__main__", "a page that shows the maps of an image or the camera", "view"),
        Row("triton", "dpt_deploy.serve.__main__", "a model repository for NVIDIA Triton, from a bundle", "cli"),
        Row("doctor", "dpt_deploy.doctor.__main__", "what this machine has, and what a bundle needs", "cli"),
    ),
    "Train": (
        Row("train", "train.__main__", "train a model on a data folder", "train"),
        Row("evaluate", "train.evaluate", "metrics of a checkpoint or a bundle on labelled data", "train"),
        Row("prepare", "train.prepare", "decode a data folder once, so that training reads faster", "train"),
        Row("check-data", "train.check", "look for faults in a data folder", "train"),
        Row("synthesize", "train.synthetic", "generate labelled images", "train"),
    ),
}
ROWS = {row.name: row for rows in GROUPS.values() for row in rows}


def main() -> None:
    """Run the command that the command line names, and exit with its status."""
    arguments = sys.argv[1:]
    name = arguments[0] if arguments else "--help"
    if name in ("-h", "--help"):
        print(help_page())
    elif name == "--version":
        print(f"dpt-deploy {__version__}")
    elif name in ROWS:
        sys.argv = [f"dpt {name}", *arguments[1:]]  # what usage lines and manifests show
        load(ROWS[name]).run()
    else:
        with exit_on_error():
            if name != "completion":
                raise BadInput(f"{name}: expected one of {', '.join([*ROWS, 'completion'])}. Run: dpt --help")
            print(completion(arguments[1:]))


def help_page() -> str:
    """The commands, one line each."""
    width = max(map(len, ROWS)) + 2
    lines = ["usage: dpt COMMAND [OPTIONS]      python -m dpt_deploy COMMAND [OPTIONS]", ""]
    for title, rows in GROUPS.items():
        lines += [f"{title}:", *(f"  {row.name:{width}}{row.help}" for row in rows), ""]
    return "\n".join([
        *lines,
        f"  {'completion':{width}}completion script for a shell: dpt completion bash|zsh",
        f"  {'--version':{width}}the version",
        f"  {'-h, --help':{width}}this page; after a command, its options",
        "",
        "Exit status: 0 done, 1 verdict failed or input skipped, 2 error, 130 Ctrl-C, 128+N signal N.",
    ])


def load(row: Row) -> Command:
    """The command of a row; exits with status 2 if a package that it needs is missing."""
    with needing(row.extra):
        return importlib.import_module(_module(row.module)).COMMAND


def training_module(name: str) -> ModuleType:
    """A module of the training package, such as train.labelled, under the name that it has here.

    Raises:
        MissingPackage: A package that it needs is not installed.
    """
    try:
        return importlib.import_module(_module(name))
    except ImportError as error:
        if (error.name or "").partition(".")[0] in OURS:
            raise
        raise missing_package(error.name or str(error), "train", "read labelled data") from error


def _module(name: str) -> str:
    """The module's name here: a clone has the folder train/, and an installation has the same as dpt_train."""
    if name.partition(".")[0] != "train":
        return name
    if (CLONE / "pyproject.toml").is_file() and (CLONE / "train" / "__init__.py").is_file():
        sys.path.insert(0, str(CLONE))  # before the working folder, which may hold another train.py
        return name
    return f"dpt_{name}"


def completion(arguments: list[str]) -> str:
    """The completion script for a shell; commands whose packages are not installed are left out."""
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise BadInput(f"completion: expected {' or '.join(SHELLS)}, received {' '.join(arguments) or 'nothing'}.")
    with needing("cli"):
        from .help import completion_script
    found = {}
    for row in ROWS.values():
        # A command without its packages says so and exits.
        with contextlib.suppress(ImportError, SystemExit), contextlib.redirect_stderr(io.StringIO()):
            found[row] = importlib.import_module(_module(row.module)).COMMAND.config
    return completion_script({row.name: (row.help, config) for row, config in found.items()}, arguments[0])
