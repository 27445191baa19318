"""The typed manifest of a bundle, validated when it is read.

Unknown keys are kept, so rewriting a manifest of a newer version loses nothing. No other module uses the
keys of `manifest.json` as strings.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from .contract import Contract, Graph
from .errors import BadBundle, BadInput
from .plan import EIGHT_BITS as EIGHT_BITS  # part of this module's interface, as PrecisionPlan is
from .plan import Plan, Precision
from .plan import PrecisionPlan as PrecisionPlan
from .values import Number, Sha256, StrictBool, StrictFloat, StrictInt, parse_json
from .verdict import REFERENCE, Stage, stage_from_json, to_json

FORMAT = 1
MAX_BYTES = 16 << 20
"""The largest `manifest.json` that is read. A typical one has 20 kB."""
Kind = Literal["onnx", "data", "engine", "cache", "reference", "report", "compat"]
Weights = Literal["fixed", "refittable", "stripped"]
MAX_SHOWN = 6
"""How many values of an assumed fact a sentence lists; the manifest has all."""


class Record(BaseModel):
    """Base class of manifest entries: immutable, validates known keys and keeps unknown ones."""

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values of the fields that were set explicitly."""
        return json.loads(self.model_dump_json(exclude_unset=True))


class ShapeRange(Record):
    """The shapes that an engine accepts at one input."""

    min: tuple[StrictInt, ...]
    opt: tuple[StrictInt, ...]
    """The shape that the engine is optimised for."""
    max: tuple[StrictInt, ...]


class AttentionRecord(Record):
    """The attention section of a certificate."""

    status: Literal["passed", "failed", "not run", ""] = ""
    reason: str = ""
    blocks: StrictInt | None = None
    """Number of attention blocks in the backbone."""
    layers: StrictInt | None = None
    """Number of attention layers in the network."""
    sums: str = ""
    """What attention accumulates in: fp16, fp32, or "fp16 and fp32". Empty if the network has no attention layer."""


class FlopsRecord(Record):
    """Matrix FLOPs for a batch of one."""

    share: StrictFloat | None = None
    """Fraction in half precision."""


class KernelsRecord(Record):
    """What the builder lists for the built engine."""

    status: Literal["passed", "failed", "not run", ""] = ""
    reason: str = ""
    share: StrictFloat | None = None
    """Fraction of the network's eight-bit FLOPs that are in kernels with eight-bit operands."""
    islands: tuple[str, ...] = ()
    """The modules that the network has in eight bits and the kernels in floating point."""


class IslandRecord(Record):
    """A module that was to be quantized and computes in floating point."""

    name: str
    flops: StrictInt = 0
    reason: str = ""


class EightBitFlops(Record):
    """The eight-bit section of a certificate."""

    type: Literal["int8", "fp8", ""] = ""
    """The type that was asked for. Empty if the precision is not one of eight bits."""
    layers: StrictInt = 0
    """Number of layers that multiply in that type."""
    weights_only: StrictInt = 0
    """Number of layers whose weight is stored in that type, and which multiply in floating point."""
    flops: StrictInt = 0
    """Matrix FLOPs in that type."""
    share: StrictFloat | None = None
    """Fraction of all matrix FLOPs."""
    islands: tuple[IslandRecord, ...] = ()
    kernels: KernelsRecord = KernelsRecord()


class Certificate(Record):
    """The precision that an engine really uses. `build.certificate` documents all keys."""

    status: Literal["passed", "failed", "none"] = "none"
    reasons: tuple[str, ...] = ()
    flops: FlopsRecord = FlopsRecord()
    eight_bits: EightBitFlops = EightBitFlops()
    attention: AttentionRecord = AttentionRecord()


class GraphDetails(Record):
    """Details of an ONNX graph."""

    opset: StrictInt | None = None
    plan: Plan | None = None


class EngineDetails(Record):
    """Details of an engine."""

    builder: str
    """Name of the backend that builds and runs it."""
    builder_version: str = ""
    compute_capability: str | None = None
    """Compute capability of the target GPU, such as "9.0". None if it is not tied to one."""
    serves: tuple[str, ...] = ()
    """Compute capabilities of the GPUs that a TensorRT-RTX engine runs on. Empty if not known."""
    profile: dict[str, ShapeRange] = {}
    """Accepted shapes by input name."""
    max_pixels: StrictInt | None = None
    """Largest product of batch, height and width of a frame graph's input."""
    weights: Weights = "fixed"
    version_compatible: StrictBool = False
    hardware_compatible: StrictBool = False
    made_from: Sha256 | None = None
    """SHA-256 of the graph that it was built from."""
    refitted_from: Sha256 | None = None
    """SHA-256 of the engine whose weights were replaced."""
    certificate: Certificate | None = None


class Artifact(Record):
    """One file of a bundle."""

    file: str
    """File name within the bundle's folder."""
    kind: Kind
    sha256: Sha256
    bytes: Annotated[StrictInt, Field(ge=0)]
    graph: Graph | None = None
    """None if the file is neither a graph nor an engine."""
    precision: Precision | None = None
    """The default precision of the graph."""
    key: str | None = None
    """Hash of everything the file depends on. Another run with an equal key reuses the file."""
    reproducible: StrictBool | None = None
    """Whether making the file again from the same inputs gives the same bytes, and so the same hash. Graphs and the
    reference are reproducible on one machine. Engines are not: a builder chooses kernels by timing them. None if the
    version that wrote the manifest did not say."""
    details: GraphDetails | EngineDetails | Record = Field(default_factory=dict, validate_default=True)

    @field_validator("file")
    @classmethod
    def _inside_the_folder(cls, file: str) -> str:
        if Path(file).name != file or file in ("", ".", ".."):
            raise ValueError(f"expected the name of a file in the bundle's folder, received {file!r}")
        return file

    @field_validator("details", mode="before")
    @classmethod
    def _typed_by_kind(cls, details: Any, info: Any) -> Any:
        kinds: dict[str, type[Record]] = {"onnx": GraphDetails, "engine": EngineDetails}
        wanted = kinds.get(info.data.get("kind", ""), Record)
        return details if isinstance(details, wanted) else wanted.model_validate(details)

    def to_json(self) -> dict[str, Any]:
        unset = {"reproducible"} if self.reproducible is None else set()
        return json.loads(self.model_dump_json(exclude=unset)) | {"details": self.details.to_json()}


class Checkpoint(Record):
    """The checkpoint that a bundle was exported from."""

    file: str = "best_model.pth"
    sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""


class Assumption(Record):
    """A fact that nobody stated. The export took a value for it, so the verdict holds only if the value is right."""

    fact: str
    """What was assumed, such as depth_scale, mean, resize or backbone."""
    value: Any
    """The value that was taken, as plain JSON."""
    reason: str = ""
    """Why this value, such as "the checkpoint has no description"."""
    option: str = ""
    """The option of `dpt export` that states the fact, such as --depth-scale."""

    def __str__(self) -> str:
        text = self.value
        if isinstance(self.value, list | tuple):
            shown = self.value if len(self.value) <= MAX_SHOWN else self.value[: MAX_SHOWN - 1]
            more = f" and {len(self.value) - len(shown)} more" if len(shown) < len(self.value) else ""
            text = ", ".join(map(str, shown)) + more
        advice = f"; {self.option} states it" if self.option else ""
        return f"{self.fact} {text} ({self.reason}){advice}"


class ModelRecord(Record):
    """The architecture, as written by `dpt_deploy.model.ModelConfig`."""

    backbone: str = "unknown"
    depth_scale: Annotated[StrictFloat, Field(gt=0, allow_inf_nan=False)] = 5.0


class TrialRecord(Record):
    """One precision plan that the search tried."""

    name: str
    plan: Plan
    passed: StrictBool
    heads: dict[str, dict[str, Number]] = {}
    reasons: tuple[str, ...] = ()
    backbone_half: StrictFloat | None = None
    """Fraction of the backbone's matrix FLOPs in half precision."""
    decoder_half: StrictFloat | None = None
    """The same for decoder and heads."""


def _readable_stage(value: Any) -> Stage | None:
    """The stage, or None if a version before 0.1.0 wrote it, so that it is judged again."""
    try:
        return value if value is None or isinstance(value, Stage) else stage_from_json(value)
    except ValueError:
        if isinstance(value, dict) and "id" in value:
            raise
        return None


class PrecisionRecord(Record):
    """How the precision plan was chosen."""

    key: str | None = None
    """Hash of everything the choice depends on."""
    plan: Plan
    trials: tuple[TrialRecord, ...] = ()
    stage: Annotated[Stage | None, BeforeValidator(_readable_stage)] = None
    """The parity result of PyTorch in the plan's precision."""

    def to_json(self) -> dict[str, Any]:
        value = json.loads(self.model_dump_json(exclude={"stage"}))
        return value | ({"stage": to_json(self.stage)} if self.stage is not None else {})


class EightBitTrial(Record):
    """One plan in eight bits that the search tried."""

    name: str
    plan: Plan
    backend: str = ""
    """The backend that ran it."""
    passed: StrictBool
    share: StrictFloat
    """Fraction of the matrix FLOPs in eight bits."""
    loss: Number
    """The largest share of its limit that one of the measured values uses; at most 1 is within the limits."""
    heads: dict[str, dict[str, Number]] = {}
    """Distances to FP32 by head and metric, the worst over the images of the search."""
    reasons: tuple[str, ...] = ()


class EightBitRecord(Record):
    """How the eight-bit graphs were made."""

    key: str
    """Hash of everything the choice depends on."""
    plan: Plan
    share: StrictFloat
    """Fraction of the matrix FLOPs in eight bits."""
    calibration: StrictInt
    """Number of images that the ranges of activations were measured on."""
    searched_on: str = ""
    """What the trials were judged by, in words."""
    trials: tuple[EightBitTrial, ...] = ()


class Manifest(Record):
    """The content of `manifest.json`."""

    format: Literal[1] = FORMAT
    name: str
    created: str = ""
    """UTC, ISO 8601."""
    command: str = ""
    """The command line that exported the bundle."""
    checkpoint: Checkpoint = Checkpoint()
    model: ModelRecord = ModelRecord()
    contract: dict[str, Any]
    """As written by `Contract.to_json`. `Bundle.contract` is the typed form."""
    assumed: tuple[Assumption, ...] = ()
    """What the export assumed because neither the checkpoint nor an option stated it."""
    training: dict[str, Any] = {}
    """The training record in the checkpoint."""
    options: dict[str, Any] = {}
    """The options of the export."""
    versions: dict[str, str] = {}
    """Package versions used by the export."""
    precision: PrecisionRecord | None = None
    eight_bits: dict[Precision, EightBitRecord] = {}
    """How the plan of the graphs in int8 or fp8 was chosen, by precision."""
    artifacts: tuple[Artifact, ...] = ()

    @property
    def imported(self) -> bool:
        """Whether the bundle was made from an ONNX file of another project, and not from a checkpoint."""
        return "description" in self.options

    @property
    def reference(self) -> str:
        """What the bundle is judged against, in words."""
        return f"{self.checkpoint.file} in ONNX Runtime FP32" if self.imported else REFERENCE

    @field_validator("contract")
    @classmethod
    def _is_a_contract(cls, contract: dict[str, Any]) -> dict[str, Any]:
        try:
            Contract.from_json(contract)
        except BadInput as error:
            raise ValueError(str(error)) from error
        return contract

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read `manifest.json`. Raises `BadBundle` if it is not a valid manifest."""
        try:
            if (size := path.stat().st_size) > MAX_BYTES:
                raise BadBundle(f"{path}: expected at most {MAX_BYTES} bytes, received {size}. Export the checkpoint "
                                "again.")
            value = parse_json(path.read_text(encoding="utf-8"))
            found = value.get("format") if isinstance(value, dict) else None
            if isinstance(found, int) and found != FORMAT:
                raise BadBundle(
                    f"{path}: expected format {FORMAT}, received {found}. Export the checkpoint again with this "
                    "version of dpt-deploy, or install the version that wrote it."
                )
            manifest = cls.model_validate(value)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "the file"
            raise BadBundle(f"{path}: expected a manifest of format {FORMAT}, but {where:.200}: {first['msg']:.500}. "
                            "Export the checkpoint again.") from error
        except (OSError, ValueError, RecursionError) as error:
            raise BadBundle(f"{path}: expected a manifest of format {FORMAT}, but it is not valid JSON ({error}). "
                            "Export the checkpoint again.") from error
        if "artifacts" not in manifest.model_fields_set:
            raise BadBundle(f"{path}: expected a manifest of format {FORMAT}, but artifacts: Field required. "
                            "Export the checkpoint again.")
        return manifest

    def to_json(self) -> dict[str, Any]:
        value = super().to_json() | {"artifacts": [artifact.to_json() for artifact in self.artifacts]}
        if self.precision is not None:
            value["precision"] = self.precision.to_json()
        return {"format": FORMAT} | value

    @property
    def origin(self) -> tuple[Any, ...]:
        """What every file of a bundle depends on. Excludes the checkpoint's file name."""
        description = (self.options["description"],) if self.imported else ()
        return self.checkpoint.sha256, self.contract, self.model.to_json(), *description

    def key(self, *made_from: Any) -> str:
        """Hash of the checkpoint, contract, model, versions and `made_from` (plain JSON values)."""
        return digest([*self.origin, self.versions, *made_from])


def digest(made_from: Sequence[Any]) -> str:
    """SHA-256 of plain JSON values, with sorted keys."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()
