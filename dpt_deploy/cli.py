"""One way in for every command: dataclass -> command line, errors -> one sentence and an exit status."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Callable, Iterator
from typing import TypeVar

from .core.errors import DptError, MissingPackage, missing_package

Config = TypeVar("Config")


@contextlib.contextmanager
def needing(extra: str) -> Iterator[None]:
    """Around a command's imports: a missing package becomes one sentence that names the extra, and exit status 2."""
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] == "dpt_deploy":
            raise
        package = error.name or str(error)
        print(f"error: {missing_package(package, extra, 'run this command')}", file=sys.stderr)
        sys.exit(MissingPackage.exit_code)


def run(
    config: type[Config], main: Callable[[Config], int | None], prog: str, default: Callable[[], Config] | None = None
) -> None:
    """Parse the command line into the dataclass `config`, call `main` with it, and exit.

    `default` gives the values of what the command line leaves out, where they are not the class's own.
    Exit status: what `main` returns (None is 0), 2 for a `DptError` (its message goes to standard
    error, without a traceback), 130 for Ctrl-C.
    """
    with needing("cli"):
        import tyro
    try:
        values = {"default": default()} if default else {}
        parsed = tyro.cli(config, prog=prog, description=config.__doc__, config=(tyro.conf.OmitArgPrefixes,), **values)
        sys.exit(main(parsed) or 0)
    except DptError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        print(str(error) or "interrupted", file=sys.stderr)
        sys.exit(130)


def command_line(prog: str) -> str:
    """The command that is running, as a shell line, for manifests and reports."""
    return shlex.join(prog.split() + sys.argv[1:])
