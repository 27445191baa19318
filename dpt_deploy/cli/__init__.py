"""One way in for every command: dataclass -> command line, errors -> one sentence and an exit status.

Exit statuses, the same in every command:

    0    done, and passed
    1    done, but the verdict failed, or part of the input was skipped
    2    an error: bad input, or a package that is missing
    130  interrupted; training and video stopped by signal N end with 128+N

A command's module ends with

    COMMAND = cli.Command(ExportConfig, main, "python -m dpt_deploy.export", renamed={"--old": "--new"})

    if __name__ == "__main__":
        COMMAND.run()

and has a row in `commands.py`, so that `dpt export` runs it too.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..core.collector import collector_off
from ..core.errors import DptError, DptWarning, MissingPackage, missing_package

OURS = ("dpt_deploy", "dpt_train", "train", "benchmarks", "demo")


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around a command's imports: a missing package becomes one sentence that names the extra, and exit status 2."""
    try:
        with collector_off():
            yield
        gc.freeze()  # what an import made stays, so no collection needs to look at it again
    except ImportError as error:
        if (error.name or "").partition(".")[0] in OURS:
            raise
        package = error.name or str(error)
        print(f"error: {missing_package(package, extra, 'run this command')}", file=sys.stderr)
        sys.exit(MissingPackage.exit_code)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Print the text of a `DptWarning` alone, without a line of the code that gave it."""
    before = warnings.formatwarning

    def text(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> str:
        if issubclass(category, DptWarning):
            return f"warning: {message}\n"
        return before(message, category, *rest, **more)

    warnings.formatwarning = text
    try:
        yield
    finally:
        warnings.formatwarning = before


@contextlib.contextmanager
def exit_on_error() -> Iterator[None]:
    """Around a program: a `DptError` or Ctrl-C becomes its message on standard error, and its exit status.

    A `DptWarning` becomes a line on standard error.
    """
    try:
        with _plain_warnings():
            yield
    except DptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(130)


@dataclass(frozen=True)
class Command:
    """A command: the dataclass of its options, and the function that does the work."""

    config: type
    """Dataclass whose fields are the options, and whose docstring is the description."""
    main: Callable[[Any], int | None]
    """Receives the options; returns the exit status, None for 0."""
    prog: str
    """How the command is called, such as "python -m dpt_deploy.export"."""
    default: Callable[[], Any] | None = None
    """Gives the values of options that the command line leaves out, if they are not the class's own."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Old option -> the new one, or a sentence about one that is gone; see `options.check_renamed`."""

    def run(self) -> None:
        """Parse the command line, do the work, and exit. The message of a `DptError` goes to standard error."""
        # The collection at exit would visit every object of torch, 1.6 s after an export, for memory that goes anyway.
        atexit.register(gc.freeze)
        with needing("cli"):
            from .help import parse
            from .options import check_renamed
        with exit_on_error():
            check_renamed(sys.argv[1:], self.renamed)
            default = self.default() if self.default else None
            sys.exit(self.main(parse(self.config, program(self.prog), default)) or 0)


def run(config: type, main: Callable[[Any], int | None], prog: str, **options: Any) -> None:
    """`Command(config, main, prog, **options).run()`: for scripts that are not in the table of commands."""
    Command(config, main, prog, **options).run()


def program(prog: str) -> str:
    """How the command that is running was called: "dpt export" if `dpt` called it, else `prog`."""
    return sys.argv[0] if sys.argv[0].startswith("dpt ") else prog


def command_line(prog: str) -> str:
    """The command that is running, as a shell line, for manifests and reports."""
    return shlex.join(program(prog).split() + sys.argv[1:])
