"""What a process needs to know to predict its part of the images. Plain data: it can be sent to another machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.bundle import Bundle
from ..core.contract import HEADS, Graph
from ..core.errors import BadInput
from ..core.manifest import digest
from ..runtime import Precision, Runtime, load
from .batches import Batches, Outcome, Work
from .extras import ExtraWriter
from .formats import FORMATS
from .journal import Part
from .outputs import Files, Output, Shards

Picture = Literal["panel", "matte", "none"]
_OF_PNG16 = {"--depth-png", "--normals", "--alpha-png"}


@dataclass(frozen=True)
class Job:
    """The options of a run."""

    bundle: Path | str
    out: Path
    backend: str | None = None
    graph: Graph | None = "frame"
    precision: Precision | None = None
    threads: int | None = None
    """CPU threads per operator."""
    maps: tuple[str, ...] | None = None
    """Heads to store; None for all that the bundle has."""
    format: str = "npz"
    forms: tuple[tuple[str, str], ...] = ()
    """Head and form, where it is not the format's own."""
    look: Picture = "none"
    max_pixels: int = 0
    batch: int = 1
    """Images of one size in a call at most."""
    workers: int = 1
    """Threads that decode, and as many that encode."""
    samples: int = 1000
    """Images in a shard."""
    extras: ExtraWriter | None = field(default=None, compare=False)
    """Writes the files besides the maps."""

    @property
    def dots(self) -> bool:
        """Whether the names of results may have dots; in tar shards they begin the suffix."""
        return FORMATS[self.format].shards != "tar"

    def load(self) -> Runtime:
        """Load the bundle. Raises as `runtime.load`."""
        return load(self.bundle, self.backend, self.graph, self.precision, self.threads)

    def stored(self, bundle: Bundle) -> dict[str, str]:
        """The form of each map that is stored. Raises `BadInput` if the bundle lacks a map, or a form does not fit."""
        heads = tuple(head for head in HEADS if head in bundle.contract.heads)
        if missing := [head for head in self.maps or () if head not in heads]:
            raise BadInput(f"--maps: expected names among {', '.join(heads)}, the heads of the bundle, received "
                           f"{', '.join(missing)}.")
        if self.look == "matte" and "alpha" not in heads:
            raise BadInput("--look matte: expected a bundle with the head alpha, received one without. Use --look "
                           "panel.")
        if self.look != "none" and FORMATS[self.format].shards == "zarr":
            raise BadInput(f"--look {self.look}: a zarr shard holds arrays only. Choose --format tar or npz.")
        if FORMATS[self.format].shards and self.extras is not None and (asked := self.extras.extras.asked()):
            raise BadInput(f"{asked[0]}: expected a format of separate files, received --format {self.format}, whose "
                           "shards hold maps only. Choose --format npz.")
        if self.extras is not None:
            self.extras.extras.check_heads(heads)
            self.extras.extras.check_depth(bundle.contract.depth)
            if self.format == "png16" and (same := _OF_PNG16 & set(self.extras.extras.asked())):
                raise BadInput(f"{min(same)}: --format png16 writes a file of that name. Choose --format npz.")
        chosen = tuple(head for head in heads if head in (self.maps or heads))
        return FORMATS[self.format].chosen_forms(self.format, dict(self.forms), chosen, bundle.contract.depth)

    def identity(self, bundle: Bundle, sources: Iterable[str]) -> dict[str, Any]:
        """What results depend on, as plain JSON: a run may go on only if it is the same.

        The backend is not part of it: a run may begin on one machine and go on on another.
        """
        manifest = bundle.manifest
        weights = manifest.checkpoint.sha256 or digest(sorted(artifact.sha256 for artifact in manifest.artifacts))
        return {"checkpoint": weights, "contract": digest([manifest.contract]), "graph": self.graph,
                "precision": self.precision, "format": self.format, "maps": self.stored(bundle), "look": self.look,
                "extras": None if self.extras is None else self.extras.identity,
                "sources": list(sources)}

    def output(self, runtime: Runtime, part: Part | None, name: str) -> Output:
        """Where results go; `name` is what the names of shards begin with."""
        options = self.out, self.format, self.stored(runtime.bundle), self.look
        if FORMATS[self.format].shards is None or part is None:
            return Files(*options, part, self.extras)
        return Shards(*options, part, name, self.samples, self.extras)

    def run(
        self, runtime: Runtime, works: Iterable[Work], part: Part | None, name: str, serial: bool = False
    ) -> Iterator[Outcome]:
        """Predict images and store the results; failures go into the journal. Raises as `Batches.run`."""
        output = self.output(runtime, part, name)
        batches = Batches(runtime, output, self.max_pixels, self.batch, self.workers, serial=serial)
        try:
            for outcome in batches.run(works):
                if outcome.failed is not None and part is not None:
                    part.failed(outcome.work.key, outcome.reason)
                yield outcome
        except BaseException:
            output.close(discard=True)
            raise
        output.close()
