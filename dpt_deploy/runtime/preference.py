"""Which backend and graph are the fastest on this processor, measured on the bundle itself and remembered.

No fixed order is right for every processor and model: FP16 can be slower than FP32, and small models can be faster in
ONNX Runtime than in OpenVINO.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from ..backends import Backend, Session, SessionOptions
from ..core.bundle import Bundle
from ..core.contract import Graph
from ..core.errors import BackendError, BadInput, MissingPackage
from ..core.files import user_cache, write_json
from ..core.manifest import Artifact
from ..core.processor import cpuinfo
from ..core.version import __version__
from .image import preprocess

VARIABLE = "DPT_MEASURE"
"""Environment variable; with the value 0 nothing is measured."""
SECONDS = 2.0
"""No round starts later than this after the warm-up."""
ROUNDS = (2, 10)
"""The fewest and the most rounds."""
MAX_BYTES = 1 << 16
"""A larger file is not a record of this module."""

Contender = tuple[Backend, Artifact]
Refuse = Callable[[Backend, str], None]


class Record(BaseModel):
    """A measurement, as it is stored."""

    model_config = ConfigDict(extra="forbid")

    measured: AwareDatetime
    calls: list[tuple[str, str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]] = Field(min_length=2)
    """Backend, file and the time of the fastest call [s], fastest first."""

    def __str__(self) -> str:
        fastest = self.calls[0][2]
        others = ", ".join(f"{backend} with {file} takes {seconds / fastest:.2f} times as long"
                           for backend, file, seconds in self.calls[1:])
        when = self.measured.astimezone(datetime.UTC)
        return f"the fastest on this processor, measured {when:%Y-%m-%d %H:%M} UTC: {others}"


@dataclass(frozen=True)
class Choice:
    """The fastest contender, opened."""

    artifact: Artifact
    session: Session
    record: Record | None
    """None if it was the only one that runs."""


def enabled(measure: bool) -> bool:
    """Whether to measure: `measure`, unless the environment variable DPT_MEASURE is 0."""
    return measure and os.environ.get(VARIABLE, "").strip() != "0"


def contenders(offers: Iterable[Contender]) -> list[Contender]:
    """The offers on a processor that are worth measuring, in the fixed order.

    These are each backend's files up to its FP32 graph. What follows is for bundles whose FP32 graph cannot be loaded.
    """
    found: list[Contender] = []
    complete: set[str] = set()
    for backend, artifact in offers:
        if backend.device == "cpu" and backend.name not in complete:
            found.append((backend, artifact))
            if artifact.precision == "fp32":
                complete.add(backend.name)
    return found


def choose(
    bundle: Bundle, graph: Graph, found: Sequence[Contender], options: SessionOptions, refuse: Refuse
) -> Choice | None:
    """Open the fastest of several contenders, by the stored measurement or by a new one, which is stored.

    Args:
        bundle: The bundle of the artefacts.
        graph: Which graph they are.
        found: At least two contenders. Their backends are available.
        options: For the sessions.
        refuse: Called with each contender that does not run, and why.

    Returns:
        None if no contender runs.
    """
    path = cache_file(bundle, graph, found, options.threads)
    record = _read(path, found)
    if record is not None:
        name, file, _ = record.calls[0]
        backend, artifact = next(one for one in found if (one[0].name, one[1].file) == (name, file))
        session = _open(bundle, backend, artifact, options, refuse)
        if session is not None:
            return Choice(artifact, session, record)
    return _measure(bundle, graph, found, options, refuse, path)


def _measure(
    bundle: Bundle, graph: Graph, found: Sequence[Contender], options: SessionOptions, refuse: Refuse,
    path: Path | None,
) -> Choice | None:
    inputs = _inputs(bundle, graph)
    running: list[tuple[Backend, Artifact, Session]] = []
    kept: Session | None = None
    try:
        for backend, artifact in found:
            session = _open(bundle, backend, artifact, options, refuse)
            if session is None:
                continue
            running.append((backend, artifact, session))
            try:
                session.run(inputs)
            except BackendError as error:
                running.pop()
                session.close()
                refuse(backend, error.message)
        if not running:
            return None
        record = None
        if len(running) > 1:
            times = _times([session for *_, session in running], inputs)
            order = sorted(range(len(running)), key=times.__getitem__)  # the fixed order decides between equals
            running = [running[i] for i in order]
            record = Record(measured=datetime.datetime.now(datetime.UTC), calls=[
                (running[rank][0].name, running[rank][1].file, times[i]) for rank, i in enumerate(order)])
            _write(path, record)
        _, artifact, kept = running[0]
        return Choice(artifact, kept, record)
    finally:
        for *_, session in running:
            if session is not kept:
                session.close()


def _times(sessions: Sequence[Session], inputs: dict[str, np.ndarray]) -> list[float]:
    """The time of each session's fastest call [s], interleaved so that all meet the same load of the machine."""
    fastest = [float("inf")] * len(sessions)
    begin = time.perf_counter()
    for round_ in range(ROUNDS[1]):
        if round_ >= ROUNDS[0] and time.perf_counter() - begin > SECONDS:
            break
        order = range(len(sessions))
        for i in order if round_ % 2 == 0 else reversed(order):
            start = time.perf_counter()
            sessions[i].run(inputs)
            fastest[i] = min(fastest[i], time.perf_counter() - start)
    return fastest


def _inputs(bundle: Bundle, graph: Graph) -> dict[str, np.ndarray]:
    """One frame of the network's input size."""
    height, width = bundle.contract.input_size
    frames = np.random.default_rng(0).integers(0, 256, (1, height, width, 3), np.uint8)
    return {"frame": frames} if graph == "frame" else {"image": preprocess(frames, bundle.contract)}


def _open(
    bundle: Bundle, backend: Backend, artifact: Artifact, options: SessionOptions, refuse: Refuse
) -> Session | None:
    try:
        return backend.open(bundle, artifact, options)
    except (BackendError, MissingPackage) as error:
        refuse(backend, error.message)
        return None


def cache_file(bundle: Bundle, graph: Graph, found: Sequence[Contender], threads: int | None) -> Path | None:
    """Where the measurement is stored: one file for each combination of files, versions, processor and threads.

    None if the user has no home folder.
    """
    hashes = sorted((artifact.file, artifact.sha256) for artifact in bundle.artifacts)
    facts = [__version__, graph, threads, hashes, _processor(), len(os.sched_getaffinity(0))
             if hasattr(os, "sched_getaffinity") else os.cpu_count(),
             [(backend.name, artifact.file, _version(backend)) for backend, artifact in found]]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    folder = user_cache()
    return folder and folder / "preference" / f"{key[:32]}.json"


def _processor() -> list[str]:
    """What identifies the processor and its instructions."""
    names = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    return [platform.machine(), platform.processor(),
            *(line for line in cpuinfo().splitlines() if line.split("\t")[0].split(":")[0].strip() in names)]


def _version(backend: Backend) -> str:
    """Of its package, which `Backend.unavailable` has imported."""
    return str(getattr(sys.modules.get(backend.package), "__version__", ""))


def _read(path: Path | None, found: Sequence[Contender]) -> Record | None:
    """The stored measurement, or None if there is none that fits."""
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            record = Record.model_validate_json(file.read(MAX_BYTES))
    except (OSError, ValueError):
        return None
    known = {(backend.name, artifact.file) for backend, artifact in found}
    return record if {call[:2] for call in record.calls} <= known else None


def _write(path: Path | None, record: Record) -> None:
    value: Any = record.model_dump(mode="json")
    try:
        if path is not None:
            write_json(path, value)
    except BadInput:
        pass  # then the next load measures again
