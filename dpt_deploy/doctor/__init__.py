"""What this machine has, and what of a bundle fits it: `python -m dpt_deploy.doctor [BUNDLE]`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "failed", "not installed", "not checked"]


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    subject: str
    status: Status
    """warning: works, but not as one might think; failed: broken or wrong; not checked: needs a GPU to know."""
    finding: str
    """What was found, for people."""
    remedy: str = ""
    """The exact command that mends it, "" where there is nothing to mend."""
