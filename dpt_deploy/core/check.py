"""The result of one diagnostic check, which backends report and the doctor prints."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

CheckStatus = Literal["ok", "warning", "failed", "not installed", "not checked"]


@dataclass(frozen=True)
class Check:
    """The result of one diagnostic check."""

    subject: str
    status: CheckStatus
    """warning: works with a limitation; failed: broken or incorrect; not checked: needs a GPU."""
    finding: str
    """The result, in words."""
    remedy: str = ""
    """The command that fixes the problem, or an empty string."""
