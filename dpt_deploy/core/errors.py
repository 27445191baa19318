"""Errors that tell the reader what to do.

Every message says what was expected, what was received, and what to run. The
command lines print the message alone, without a traceback, and exit with
`exit_code`.
"""

from __future__ import annotations


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


class BackendError(DptError):
    """A backend that was asked for cannot run here."""


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
