"""The exceptions of this package.

Every message says what was expected, what was received and what to run. Commands print the message
without a traceback and exit with `exit_code`.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class Cause(StrEnum):
    """Why something cannot run on this machine, for programs. The error's message explains it to users."""

    NO_GPU = "no GPU"
    NOT_INSTALLED = "not installed"
    NOT_BUILT = "not built"
    BROKEN = "installed but broken"
    UNSUPPORTED = "unsupported"
    """The processor, GPU or library lacks a required feature."""
    DOES_NOT_FIT = "does not fit"
    """The artefact was built for another version or GPU, or from another graph."""
    OUTSIDE_PROFILE = "outside the profile"
    NO_ARTIFACT = "no artefact"
    """The bundle has no suitable artefact."""


class DptError(Exception):
    """Base class of every error that this package raises on purpose. Exit status 2."""

    exit_code = 2

    @property
    def message(self) -> str:
        """The text without the backend's name."""
        return str(self)


class BadInput(DptError):
    """A file, folder, image or option is not usable."""


class BadCheckpoint(DptError):
    """A checkpoint cannot be read or does not match the model."""


class BadBundle(DptError):
    """A bundle is incomplete, modified, or has another format."""


class ContractError(DptError):
    """The name, dtype or shape of a tensor violates the contract."""


class MissingPackage(DptError):
    """A required package is not installed."""

    cause = Cause.NOT_INSTALLED


class BackendError(DptError):
    """A backend cannot run. `cause` gives the reason for programs."""

    def __init__(self, message: str, cause: Cause = Cause.UNSUPPORTED, backend: str = "") -> None:
        super().__init__(message)
        self.cause = cause
        self.backend = backend

    def __str__(self) -> str:
        return f"{self.backend}: {self.message}" if self.backend else self.message

    @property
    def message(self) -> str:
        return self.args[0]


class BuildError(DptError):
    """Building an engine or exporting a graph failed."""


class DptWarning(UserWarning):
    """A warning to the user. Commands print its text alone."""


def not_images(count: int, names: Iterable[str]) -> str:
    """One line that counts files that are not images, and names the first ones, `names`."""
    names = list(names)
    what = "1 file that is not an image" if count == 1 else f"{count} files that are not images"
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"skipped {what}: {', '.join(names)}{more}"


def first_line(error: BaseException) -> str:
    """The first line of an error message without a full stop, or the type of the error if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def missing_package(package: str, extra: str, why: str) -> MissingPackage:
    """The error for a package that is not installed.

    Args:
        package: Name of the package.
        extra: The extra of pyproject.toml that installs it.
        why: Completes "<package> is needed to".
    """
    from .install import install_command

    return MissingPackage(f"{package} is needed to {why} and is not installed. Run: {install_command(extra)}")
