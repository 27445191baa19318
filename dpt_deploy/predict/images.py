"""One run of the command over images, in this process: progress, a table that stays small, and the exit status."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from ..core.hashes import hashed
from ..core.places import is_address, shown
from ..runtime import Runtime
from .batches import Outcome, Work
from .job import Job
from .journal import FOLDER, Journal
from .naming import Names
from .sources import Sources

FEW = 100
"""A run with more images is a large one: no panels, a compact format, a journal."""
ROWS = 5  # of the table and of the failures that a large run prints


@dataclass
class Tally:
    """What became of the images of a run."""

    done: int = 0
    before: int = 0
    """Were done when the run began."""
    failed: int = 0
    notes: int = 0
    """Images of which something was left out."""
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, size and files of the first images."""
    lines: list[str] = field(default_factory=list)
    """The first failures and notes."""
    first: BaseException | None = None
    """The first failure."""
    seconds: float = 0.0

    def add(self, outcome: Outcome, most: int) -> None:
        """Count an image. Of rows and lines, the first `most` are kept."""
        if outcome.failed is not None:
            self.failed += 1
            self.first = self.first or outcome.failed
            self._line(outcome.reason, most)
            return
        self.done += 1
        if outcome.note:
            self.notes += 1
            self._line(outcome.note, most)
        if len(self.rows) < most:
            folder = Path(outcome.work.stem).parent
            self.rows.append((str(folder / outcome.work.label), "x".join(map(str, outcome.size)),
                              "\n".join(outcome.files)))

    def _line(self, line: str, most: int) -> None:
        if len(self.lines) < most:
            self.lines.append(line)


class Stop:
    """Within the block, the first Ctrl-C or SIGTERM sets `signal`, and the second one raises `KeyboardInterrupt`."""

    def __init__(self) -> None:
        self.signal = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        with contextlib.suppress(ValueError):  # only the main thread may
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        if self.signal:
            raise KeyboardInterrupt
        self.signal = number

    def until(self, works: Iterable[Work]) -> Iterator[Work]:
        """The works, up to the signal."""
        for work in works:
            if self.signal:
                return
            yield work


def predict_few(job: Job, runtime: Runtime, works: Sequence[Work], console: Console, stop: Stop) -> Tally:
    """Predict images without a journal. All of them have a row in the tally, in their order."""
    outcomes: dict[str, Outcome] = {}  # by stem: no two images have the same one
    with progress(console, len(works)) as bar:
        task = bar.add_task("", total=len(works))
        for outcome in job.run(runtime, stop.until(works), None, ""):
            outcomes[outcome.work.stem] = outcome
            bar.update(task, advance=1, description=outcome.work.label)
    tally = Tally()
    for work in works:
        if work.stem in outcomes:
            tally.add(outcomes[work.stem], len(works))
    return tally


def predict_many(
    job: Job, runtime: Runtime, sources: Sources, share: tuple[int, int], resume: bool, verify: bool, console: Console,
    stop: Stop,
) -> Tally:
    """Predict a share of the images with a journal.

    Raises:
        BadInput: The output folder has another run's results, another process works there, or it cannot be written.
        BackendError: The backend fails again and again.
    """
    identity = job.identity(runtime.bundle, source_names(sources))
    journal = Journal(job.out, identity, f"{share[0] + 1}/{share[1]}", resume, verify)
    tally = Tally()
    names = Names(journal.done.stems, dots=job.dots)

    def remaining() -> Iterator[Work]:
        for work in stop.until(sources.works(names, share)):
            if hashed(work.key) in journal.done.keys:
                tally.before += 1
            else:
                yield work

    with contextlib.closing(journal), progress(console, None) as bar:
        task = bar.add_task("", total=None)
        start = time.perf_counter()
        for outcome in job.run(runtime, remaining(), journal.part, f"maps-{journal.number:05d}"):
            tally.add(outcome, ROWS)
            tally.seconds = time.perf_counter() - start
            bar.update(task, description=counts(tally))
        tally.seconds = time.perf_counter() - start
    return tally


def source_names(sources: Sources) -> list[str]:
    """The sources of images: local ones by their whole path, addresses without passwords and queries."""
    texts = [source.text for source in sources.listing.sources]
    return [shown(text) if is_address(text.removeprefix("@")) else os.path.abspath(text) for text in texts]


def counts(tally: Tally) -> str:
    """One line on the state of a large run."""
    speed = f", {tally.done / tally.seconds:.1f} images/s" if tally.seconds and tally.done else ""
    return f"{tally.done} done, {tally.failed} failed, {tally.before} done before{speed}"


def progress(console: Console, total: int | None) -> Progress:
    """A bar for a known number of images, a line of text for an unknown one."""
    known = [BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()] if total is not None else []
    return Progress(TextColumn("predicting"), *known, TextColumn("{task.description}", markup=False), console=console)


def print_tally(console: Console, out: Path, tally: Tally, many: bool) -> None:
    """The table of a few images, or the first rows and the summary of many."""
    if tally.rows:
        table = Table("image", "size", "files")
        for row in tally.rows:
            table.add_row(*row)
        console.print(f"Written to {out}", style="italic")  # a title of the table would be broken
        console.print(table, soft_wrap=False)
    if many:
        if tally.done > len(tally.rows):
            console.print(f"and {tally.done - len(tally.rows)} more")
        console.print(counts(tally))
        if tally.failed:
            console.print(f"The journal says why: grep failed {out / FOLDER}/*.jsonl")

