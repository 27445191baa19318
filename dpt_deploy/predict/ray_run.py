"""A run over images with Ray Data, on one machine or a cluster: actors hold the runtime and write the results.

The images are dealt in blocks. Each block has a part of the journal of its own, in which the actor notes every image.
If an actor dies, Ray gives its block to another one, which goes on where the part ends. Ray is imported in here only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import pickle
import socket
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from ..core.errors import BadInput, DptError, first_line, missing_package
from ..core.hashes import hashed
from ..core.places import is_address
from ..core.storage import Shard
from ..runtime.runtime import open_bundle
from .batches import Outcome, Work
from .formats import FORMATS
from .images import ROWS, Stop, Tally, counts, progress, source_names
from .job import Job
from .journal import Journal, Part, part_path, read_done, read_part
from .naming import Names
from .sources import Sources, shard_works

BLOCK = 256  # images; of formats in shards, a block is a shard
BLAMED = 2  # an image fails that was under way this often when an actor died
MOST_THREADS = 16  # of an actor that computes on the CPU


@dataclasses.dataclass(frozen=True)
class Assignment:
    """What all actors of a run share."""

    job: Job
    folder: Path
    """Of the journal."""
    number: int
    share: str


class Actor:
    """Predicts blocks of images. Holds the runtime from its first block on."""

    def __init__(self, assignment: Assignment) -> None:
        self.assignment = assignment
        self.runtime: Any = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """One row of text for each block: what became of its images, as JSON. An error is a row too."""
        return {"outcome": [json.dumps(self._block(int(number), data))
                            for number, data in zip(batch["block"], batch["works"], strict=True)]}

    def _block(self, block: int, data: bytes) -> dict[str, Any]:
        run, tally = self.assignment, Tally()
        problems: list[str] = []
        try:
            if self.runtime is None:
                self.runtime = run.job.load()
            works = pickle.loads(zlib.decompress(data))  # from the process that began the run
            path = part_path(run.folder, run.number, block)
            found = read_part(path, run.job.out)
            tally.before = len(found.done)
            if isinstance(works, Shard):
                works = self._members(works, problems)
            name = f"maps-{run.number:05d}-{block:06d}" + (f"-{found.attempts}" if found.attempts else "")
            with Part(path, run.share) as part:

                def remaining() -> Iterator[Work]:
                    for work in works:
                        if found.died_with.count(work.key) >= BLAMED:
                            error = BadInput(f"{work.item.label}: the process that predicted it died {BLAMED} times, "
                                             "for lack of memory or in a decoder. Convert it to another format.")
                            part.failed(work.key, str(error))
                            tally.add(Outcome(work, failed=error), ROWS)
                        elif work.key not in found.done:
                            if found.attempts:
                                part.begun(work.key)
                            yield work

                # After a death one image at a time, to find which one it is.
                for outcome in run.job.run(self.runtime, remaining(), part, name, serial=found.attempts > 0):
                    tally.add(outcome, ROWS)
        except DptError as error:
            return {"error": str(error)}
        return {"block": block, "done": tally.done + tally.before, "failed": tally.failed, "notes": tally.notes,
                "rows": tally.rows, "lines": tally.lines, "problems": problems}

    def _members(self, shard: Shard, problems: list[str]) -> Iterator[Work]:
        """The images of a remote tar that earlier runs did not finish."""
        run = self.assignment
        earlier = read_done(run.folder, run.job.out)
        for work in shard_works(shard, Names(earlier.stems, dots=run.job.dots), problems.append):
            if hashed(work.key) not in earlier.keys:
                yield work


def predict_with_ray(
    job: Job, sources: Sources, share: tuple[int, int], resume: bool, verify: bool, console: Console, stop: Stop,
    address: str | None, actors: int | None,
) -> Tally:
    """Predict a share of the images with a journal.

    Args:
        address: Of a cluster; None for RAY_ADDRESS, or for this machine alone.
        actors: How many; None for one for each GPU, or for each four cores.

    Raises:
        BadInput: As `predict_many`; or Ray does not start or has a single core.
        MissingPackage: Ray is not installed.
    """
    bundle = open_bundle(job.bundle)
    identity = job.identity(bundle, source_names(sources))  # checks the options, before Ray starts
    own = {"bundle": job.bundle if is_address(str(job.bundle)) else Path(os.path.abspath(job.bundle)),
           "out": Path(os.path.abspath(job.out))}
    job = dataclasses.replace(job, **own)
    with contextlib.closing(Journal(job.out, identity, f"{share[0] + 1}/{share[1]}", resume, verify)) as journal:
        blocks, sizes, before = _blocks(job, sources, share, journal)
        tally = Tally(before=before)
        if not blocks:
            return tally
        with _ray(address) as ray:
            options = _options(ray.cluster_resources(), job, min(actors or len(blocks), len(blocks)), actors)
            job = dataclasses.replace(job, threads=job.threads or options.pop("threads"))
            options.pop("threads", None)
            assignment = Assignment(job, journal.folder, journal.number, journal.share)
            finished = _collect(ray, blocks, assignment, options, tally, sources, console, stop)
    if (missing := sum(size for block, size in enumerate(sizes) if block not in finished)) and not stop.signal:
        tally.failed += missing
        tally.lines.append(f"{missing} images or less: the processes that predicted them died. Run again with --resume")
    return tally


def _blocks(
    job: Job, sources: Sources, share: tuple[int, int], journal: Journal
) -> tuple[list[bytes], list[int], int]:
    """The blocks, packed: some 20 bytes an image; the images in each, 1 for a remote tar; how many are done already."""
    size = job.samples if FORMATS[job.format].shards else BLOCK
    blocks: list[bytes] = []
    sizes: list[int] = []
    works: list[Work] = []
    before = 0

    def pack(content: list[Work] | Shard) -> None:
        blocks.append(zlib.compress(pickle.dumps(content)))
        sizes.append(len(content) if isinstance(content, list) else 1)

    for unit in sources.units(Names(journal.done.stems, dots=job.dots), share):
        if isinstance(unit, Shard):
            pack(unit)
            continue
        if hashed(unit.key) in journal.done.keys:
            before += 1
            continue
        works.append(unit)
        if len(works) >= size:
            pack(works)
            works = []
    if works:
        pack(works)
    return blocks, sizes, before


@contextlib.contextmanager
def _ray(address: str | None) -> Iterator[Any]:
    """Ray, started on this machine or connected to a cluster."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise missing_package("ray", "ray", "predict with --ray") from error
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _check_reachable(address)
    local = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **local)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        text = " ".join(str(error).split())[:300]
        raise BadInput(f"--ray: expected a Ray cluster at {address}, received: {text}. Check the address, or leave it "
                       "out for this machine alone.") from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise `BadInput` if nothing listens at HOST:PORT; Ray itself would try for more than a minute."""
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not colon or not port.isdecimal():
        return  # such as local and auto
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise BadInput(f"--ray: expected a Ray cluster at {address}, but nothing answers there ({first_line(error)}). "
                       "Check the address, or leave it out for this machine alone.") from error


def _options(resources: dict[str, float], job: Job, most: int, actors: int | None) -> dict[str, Any]:
    """How many actors of which size fit, and threads of each."""
    cores, gpus = int(resources.get("CPU", 0)), int(resources.get("GPU", 0))
    if cores < 2:
        raise BadInput(f"--ray: expected a cluster with at least 2 cores, received {cores}, on which Ray Data hangs. "
                       "Run without --ray.")
    if gpus:
        count = min(actors or gpus, most)
        return {"concurrency": count, "num_cpus": 1, "num_gpus": 1 if count <= gpus else gpus / count, "threads": None}
    count = min(actors or max(1, cores // 4), most, cores - 1)
    each = max(1, cores // count)
    return {"concurrency": count, "num_cpus": max(1, min(each, (cores - 1) // count)),
            "threads": min(each, MOST_THREADS)}


def _collect(
    ray: Any, blocks: list[bytes], assignment: Assignment, options: dict[str, Any], tally: Tally, sources: Sources,
    console: Console, stop: Stop,
) -> set[int]:
    """Run the blocks, and count what comes back. Returns the blocks that came back."""
    finished: set[int] = set()
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # what is missing is counted at the end
    rows = [{"block": number, "works": works} for number, works in enumerate(blocks)]
    data = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        Actor, fn_constructor_args=(assignment,), batch_size=1, **options)
    start = time.perf_counter()
    with progress(console, None) as bar:
        task = bar.add_task("", total=None)
        for row in data.iter_rows():
            found = json.loads(row["outcome"])
            if "error" in found:
                raise BadInput(found["error"])
            finished.add(found["block"])
            sources.problems += found["problems"]
            tally.done += found["done"]
            tally.failed += found["failed"]
            tally.notes += found["notes"]
            tally.rows += map(tuple, found["rows"][: ROWS - len(tally.rows)])
            tally.lines += found["lines"][: ROWS - len(tally.lines)]
            tally.seconds = time.perf_counter() - start
            bar.update(task, description=counts(tally))
            if stop.signal:
                break
    return finished
