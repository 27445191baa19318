"""Install commands for error messages. No other module writes them.

dpt-deploy is not on a package index, so a command lists the packages of an extra. They are read from pyproject.toml in
a clone and from the metadata of the installed distribution otherwise.
"""

from __future__ import annotations

import shlex
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

DISTRIBUTION = "dpt-deploy"
PYPROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
NOTES = {"tensorrt": "its libraries come from NVIDIA's package index"}


def install_command(extra: str, *packages: str, flags: tuple[str, ...] = ()) -> str:
    """The command that installs the packages of an extra.

    Args:
        extra: An extra of pyproject.toml such as "export", or "" for the base dependencies.
        packages: Install only these packages of the extra. Default: those that are missing or too old, or all if
            every package is up to date.
        flags: Options for pip, such as "--upgrade".

    Returns:
        A shell line such as `python -m pip install 'tyro>=1.0' 'rich>=13.9'`.
    """
    wanted = requirements(extra)
    names = {canonicalize_name(name) for name in packages}
    chosen = [item for item in wanted if canonicalize_name(item.name) in names] or \
        [item for item in wanted if not _installed(item)] or wanted
    arguments = [item.name + (f"[{','.join(sorted(item.extras))}]" if item.extras else "") + str(item.specifier)
                 for item in chosen]
    command = " ".join(["python -m pip install", *flags, *map(shlex.quote, arguments)])
    return f"{command} ({NOTES[extra]})" if extra in NOTES else command


def other_packages_command(packages: str) -> str:
    """The command that installs packages of no extra, given as one string such as "gcsfs" or "adlfs azure-identity"."""
    return shlex.join(["python", "-m", "pip", "install", *packages.split()])


def reinstall_command(*packages: str) -> str:
    """The command that reinstalls broken packages."""
    return shlex.join(["python", "-m", "pip", "install", "--force-reinstall", *packages])


def requirements(extra: str) -> list[Requirement]:
    """The requirements of an extra and of the extras that it includes. "" stands for the base dependencies."""
    found: dict[str, Requirement] = {}
    pending, seen = [extra], set()
    while pending:
        name = pending.pop()
        seen.add(name)
        for requirement in _declared(name):
            if canonicalize_name(requirement.name) == DISTRIBUTION:
                pending += requirement.extras - seen
            else:
                found[canonicalize_name(requirement.name)] = requirement
    return list(found.values())


def _declared(extra: str) -> list[Requirement]:
    if PYPROJECT.is_file():
        project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == DISTRIBUTION:
            lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
            return [Requirement(line) for line in lines]
    declared = [Requirement(line) for line in metadata.requires(DISTRIBUTION) or ()]
    if not extra:
        return [item for item in declared if item.marker is None or item.marker.evaluate({"extra": ""})]
    return [item for item in declared if item.marker and "extra" in str(item.marker)
            and item.marker.evaluate({"extra": extra})]


def _installed(requirement: Requirement) -> bool:
    try:
        return requirement.specifier.contains(metadata.version(requirement.name), prereleases=True)
    except metadata.PackageNotFoundError:
        return False
