"""One finding of the doctor, for the parts that contribute findings and the command that prints them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CheckStatus = Literal["ok", "warning", "failed", "not installed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One thing that was examined."""

    subject: str
    status: CheckStatus
    """warning: works, but not as one might expect; failed: broken or wrong; not checked: needs a GPU to know."""
    finding: str
    """What was found, for people."""
    remedy: str = ""
    """The exact command that fixes it, "" if there is nothing to fix."""
