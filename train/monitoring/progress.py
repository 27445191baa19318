"""Progress bars that become lines where standard error is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TextIO

from tqdm import tqdm

SECONDS = 30  # between two lines


class _Lines:
    """A stream that receives a bar, which begins with a carriage return, and writes lines."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip("\r\n ")
        if line and line != self._last:  # the end of a bar is drawn twice
            self._stream.write(line + "\n")
            self._last = line

    def flush(self) -> None:
        self._stream.flush()


def progress_bar(items: Iterable[Any] | None, what: str, total: int | None = None, **options: Any) -> tqdm:
    """A tqdm bar on standard error; where that is no terminal, a line at the start, every 30 seconds and at the end."""
    if not sys.stderr.isatty():
        rest = "{n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
        options |= {"file": _Lines(sys.stderr), "mininterval": SECONDS,
                    "bar_format": "{desc}: " + (rest if total is not None or hasattr(items, "__len__") else
                                                "{n_fmt} [{elapsed}, {rate_fmt}{postfix}]")}
    return tqdm(items, what, total, **options)
