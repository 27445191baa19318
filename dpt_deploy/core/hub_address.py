"""Addresses of bundles on the Hugging Face Hub: hf://OWNER/NAME, with @REVISION and a folder behind it if needed.

A revision is a branch, tag or commit. In one with a slash, the slash is written %2F, because a folder follows the next
one: hf://OWNER/NAME@feature%2Fx/FOLDER. Those of pull requests, refs/pr/1, and of converted files, refs/convert/NAME,
are understood as they are. Other names below refs/ are not revisions: refs/heads/main is the branch main.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from .errors import BadInput

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_REFS = r"refs/(?:pr/[0-9]+|convert/[A-Za-z0-9._-]+)"
_REVISION = rf"{_REFS}|(?!refs/)[A-Za-z0-9](?:[A-Za-z0-9._-]|%2[Ff])*"
# pathlib turns // into /, so both are read.
_ADDRESS = re.compile(rf"hf:/{{1,2}}({NAME}/{NAME})(?:@({_REVISION}))?((?:/{NAME})*)/?")
FORM = ("hf://OWNER/NAME, with @REVISION and a folder behind it if needed; a slash in a revision is written "
        "%2F, but for refs/pr/N and refs/convert/NAME, and no other refs/")


@dataclass(frozen=True)
class Address:
    """Where a bundle lies on the hub."""

    repository: str
    """OWNER/NAME."""
    revision: str | None = None
    """Branch, tag or commit; None for the main branch."""
    folder: str = ""
    """Folder in the repository; "" for its root."""

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"hf://{self.repository}{revision}{'/' if self.folder else ''}{self.folder}"

    @property
    def local(self) -> str:
        """The folder of the bundle after `download_command`."""
        return "/".join(filter(None, ("engines", self.repository.rpartition("/")[2], self.folder)))

    @property
    def download_command(self) -> str:
        """The shell line that copies the bundle, with its parity reference, to this machine."""
        words = ["hf", "download", self.repository]
        words += ["--revision", self.revision] if self.revision else []
        words += ["--include", f"{self.folder}/*"] if self.folder else []
        return shlex.join([*words, "--local-dir", f"engines/{self.repository.rpartition('/')[2]}"])


def is_address(text: str | Path) -> bool:
    """Whether a text is an address on the hub, and not a path."""
    return str(text).startswith("hf:/")


def parse_address(text: str | Path) -> Address:
    """An address from its text. Raises `BadInput` if it has another form."""
    found = _ADDRESS.fullmatch(str(text))
    revision = unquote(found[2]) if found is not None and found[2] else None
    wrong = revision and ("//" in revision or revision.endswith("/")
                          or (revision.startswith("refs/") and not re.fullmatch(_REFS, revision)))
    if found is None or ".." in str(text) or wrong:
        raise BadInput(f"expected an address {FORM}, received {str(text)!r:.200}.")
    return Address(found[1], revision, found[3].strip("/"))
