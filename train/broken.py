"""Samples that are incomplete or cannot be read: named, left out, and too many of them an error."""

from __future__ import annotations

from collections.abc import Callable

from dpt_deploy.core.errors import BadInput
from train.sources import Source


class Broken:
    """Counts the broken samples of `source`, the incomplete ones first; more than `limit` raise `BadInput`.

    `say` tells of the incomplete ones, which every process sees; `say_own` of those that this one met.
    """

    def __init__(
        self, source: Source, limit: int, say: Callable[[str], None], say_own: Callable[[str], None] | None = None
    ) -> None:
        self.incomplete, self.limit, self.say = source.incomplete, limit, say_own or say
        self.reasons: dict[str, str] = {}
        for line in self.incomplete[:5]:
            say(f"incomplete sample left out: {line}")
        if len(self.incomplete) > 5:
            say(f"incomplete samples left out: {len(self.incomplete) - 5} more")
        if self.incomplete:
            self._limit("incomplete", self.incomplete[0])

    def add(self, name: str, reason: str) -> None:
        """Name a sample that could not be read, once."""
        if name not in self.reasons:
            self.reasons[name] = reason
            self.say(f"broken sample left out: {reason}")
            self._limit("broken", reason)

    def _limit(self, what: str, example: str) -> None:
        count = len(self.incomplete) + len(self.reasons)
        if count > self.limit:
            raise BadInput(f"data: {count} {what} samples, more than --max-broken {self.limit}; one of them: {example} "
                           "Repair the data, or allow more.")
