"""Errors that tell the reader what to do.

Every message says what was expected, what was received, and what to run. The
command lines print the message alone, without a traceback, and exit with
`exit_code`.
"""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why something cannot run here, for programs; the error's message says it to people."""

    NO_GPU = "no GPU"
    NOT_INSTALLED = "not installed"
    NOT_BUILT = "not built"
    BROKEN = "installed but broken"
    UNSUPPORTED = "unsupported"
    """The processor, the GPU or the library lacks what is needed."""
    DOES_NOT_FIT = "does not fit"
    """The artefact was made for another version or GPU, or from another graph."""
    OUTSIDE_PROFILE = "outside the profile"
    NO_ARTIFACT = "no artefact"
    """The bundle has nothing that could run."""


class DptError(Exception):
    """Base class of every error this package raises on purpose; exit status 2."""

    exit_code = 2


class BadInput(DptError):
    """A file, folder, image or option that cannot be used as given."""


class BadCheckpoint(DptError):
    """A checkpoint that cannot be read, or does not fit the model."""


class BadBundle(DptError):
    """A bundle that is incomplete, changed, or of another format."""


class ContractError(DptError):
    """A tensor whose name, dtype or shape is outside the contract."""


class MissingPackage(DptError):
    """A package that this step needs is not installed."""

    cause = Cause.NOT_INSTALLED


class BackendError(DptError):
    """A backend that was asked for cannot run here; `cause` says why to programs."""

    def __init__(self, message: str, cause: Cause = Cause.UNSUPPORTED) -> None:
        super().__init__(message)
        self.cause = cause


class BuildError(DptError):
    """An engine or a graph that could not be made."""


def missing_package(package: str, extra: str, why: str) -> MissingPackage:
    """The error for a package that is not installed.

    Args:
        package: Name of the package.
        extra: The extra of pyproject.toml that brings it.
        why: Completes "... is needed to".
    """
    from .install import install_command

    return MissingPackage(f"{package} is needed to {why} and is not installed. Run: {install_command(extra)}")
