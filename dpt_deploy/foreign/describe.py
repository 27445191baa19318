"""The description of a foreign ONNX model: what its input expects, and what its outputs mean."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from ..core.contract import HEADS, MAX_INPUT_SIZE, Contract, ResizeRule
from ..core.errors import BadInput, missing_package
from ..core.values import parse_json

MAX_BYTES = 1 << 16
"""The largest description that is read."""
SUFFIXES = (".yaml", ".yml", ".json")
KEY = "dpt_deploy.description"
"""The metadata entry of an ONNX file that holds its description, as JSON."""
EXAMPLE = """input: {colours: rgb, white: 1.0, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5], resize: stretch}
outputs:
  depth: {output: 0, kind: relative, larger: farther}
  normals: {output: 1, axes: [right, up, viewer]}
  alpha: {output: 2, values: probability}
"""

Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e9, le=1e9)]
Positive = Annotated[float, Field(allow_inf_nan=False, gt=0, le=1e9)]
Pixels = Annotated[int, Field(strict=True, ge=1, le=MAX_INPUT_SIZE)]
Direction = Literal["right", "left", "up", "down", "viewer", "away"]
MAX_NAME, MAX_POSITION = 200, 1000
AXES = ({"right", "left"}, {"up", "down"}, {"viewer", "away"})


def _name_or_position(value: Any) -> int | str:
    if isinstance(value, str) and 1 <= len(value) <= MAX_NAME:
        return value
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_POSITION:
        return value
    # A list or mapping is not printed: a few aliases of YAML make one that fills the memory.
    received = f"{value!r:.60}" if isinstance(value, str | int | float | None) else f"a {type(value).__name__}"
    raise ValueError(f"expected the name of an output, of at most {MAX_NAME} characters, or its position from 0 to "
                     f"{MAX_POSITION}, received {received}")


Output = Annotated[int | str, BeforeValidator(_name_or_position)]


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(_Entry):
    """The input, float32 (N, 3, H, W)."""

    size: tuple[Pixels, Pixels] | None = None
    """Height and width [pixels]. None takes them from the graph, which must then state them."""
    colours: Literal["rgb", "bgr"] = "rgb"
    white: Positive = 1.0
    """The value of a white pixel before mean and std: 1 or 255."""
    mean: tuple[Finite, Finite, Finite] = (0.0, 0.0, 0.0)
    """Subtracted, in the order of the input's channels."""
    std: tuple[Positive, Positive, Positive] = (1.0, 1.0, 1.0)
    """Divides after the subtraction, in the order of the input's channels."""
    resize: ResizeRule = "stretch"


class Depth(_Entry):
    """Depth, (N, H, W) or (N, 1, H, W)."""

    output: Output
    """Name or position of the output."""
    kind: Literal["metric", "relative"] = "relative"
    """metric: z-depth. relative: without unit."""
    metres: Positive = 1.0
    """Metric depth: metres in one unit of the output, such as 0.01 for centimetres."""
    larger: Literal["farther", "nearer"] = "farther"
    """Relative depth: what larger values mean."""

    @model_validator(mode="after")
    def _consistent(self) -> Depth:
        if self.kind == "metric" and self.larger == "nearer":
            raise ValueError("kind metric is z-depth, whose larger values are farther")
        if self.kind == "relative" and self.metres != 1.0:
            raise ValueError("relative depth has no metres")
        return self


class Normals(_Entry):
    """Normals, (N, 3, H, W)."""

    output: Output
    axes: tuple[Direction, Direction, Direction] = ("right", "up", "viewer")
    """Where each of the three channels points."""

    @model_validator(mode="after")
    def _three_axes(self) -> Normals:
        if any(sum(axis in pair for axis in self.axes) != 1 for pair in AXES):
            raise ValueError("axes needs one of right or left, one of up or down, and one of viewer or away")
        return self

    @property
    def order(self) -> list[int]:
        """For x right, y up, z towards the viewer: the channel that holds it."""
        return [next(i for i, axis in enumerate(self.axes) if axis in pair) for pair in AXES]

    @property
    def signs(self) -> list[float]:
        """For x right, y up, z towards the viewer: 1, or -1 if the channel points the other way."""
        return [1.0 if axis in ("right", "up", "viewer") else -1.0 for axis in (self.axes[i] for i in self.order)]


class Alpha(_Entry):
    """Alpha, (N, H, W) or (N, 1, H, W)."""

    output: Output
    values: Literal["probability", "logits"] = "probability"


class Outputs(_Entry):
    """The outputs by head; at least one."""

    depth: Depth | None = None
    normals: Normals | None = None
    alpha: Alpha | None = None

    @model_validator(mode="after")
    def _some(self) -> Outputs:
        if not self.heads:
            raise ValueError(f"expected at least one of {', '.join(HEADS)}")
        return self

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads that the model has."""
        return tuple(head for head in HEADS if getattr(self, head) is not None)


class Description(_Entry):
    """What a program must know to run a foreign model."""

    input: Input = Input()
    outputs: Outputs

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, without those that mean nothing for this kind of depth."""
        value = self.model_dump(mode="json", exclude_none=True)
        if self.outputs.depth is not None:
            del value["outputs"]["depth"]["larger" if self.outputs.depth.kind == "metric" else "metres"]
        return value

    def contract(self, size: tuple[int, int]) -> Contract:
        """The contract of the adapted graph; `size` is the height and width of its input."""
        order = (2, 1, 0) if self.input.colours == "bgr" else (0, 1, 2)
        mean = tuple(self.input.mean[i] / self.input.white for i in order)
        std = tuple(self.input.std[i] / self.input.white for i in order)
        depth = self.outputs.depth.kind if self.outputs.depth else "metric"
        return Contract(size, mean, std, self.input.resize, self.outputs.heads, depth)


# The released multi-task model of Saleh et al., "DAViD", ICCV 2025: square padding by replication, BGR in [0, 1].
DAVID = Description.model_validate({
    "input": {"size": [512, 512], "colours": "bgr", "resize": "letterbox"},
    "outputs": {"depth": {"output": 0}, "normals": {"output": 1}, "alpha": {"output": 2}},
})
PRESETS = {"david": DAVID}


@dataclass(frozen=True)
class Found:
    """A description and where it comes from."""

    description: Description
    source: str
    """In words, such as "david.yaml"."""
    guessed: bool = False
    """Whether it was recognised by the shapes of the graph, and nobody stated it."""
    option: str | None = None
    """The value of --description, a file without its folder; None if that was not given."""


def describe(source: str | Path) -> Description:
    """A preset by its name, or the description in a YAML or JSON file.

    Raises:
        BadInput: There is no such file, it is too large, or it is not a description.
        MissingPackage: A YAML file, and PyYAML is not installed.
    """
    if str(source) in PRESETS:
        return PRESETS[str(source)]
    path = Path(source)
    if not os.path.isfile(path):  # also for names that are too long for the file system
        raise BadInput(f"{str(source)[:MAX_NAME]}: expected {', '.join(PRESETS)} or a file ({', '.join(SUFFIXES)}) "
                       f"that describes the model, received neither. Such a file:\n{EXAMPLE}")
    if path.stat().st_size > MAX_BYTES:
        raise BadInput(f"{path}: expected a description of at most {MAX_BYTES // 1024} KiB, received "
                       f"{path.stat().st_size // 1024} KiB.")
    try:
        text = path.read_text(encoding="utf-8")
        value = _parse_json(text) if path.suffix.lower() == ".json" else _parse_yaml(text)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: expected a description, but it is not valid ({_line(error)}). Such a file:\n"
                       f"{EXAMPLE}") from error
    return parse(value, str(path))


def parse(value: Any, where: str) -> Description:
    """A description from plain values. Raises `BadInput`, which names the field, if it is not valid."""
    try:
        return Description.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        reason = _line(first["msg"].removeprefix("Value error, "))
        field = _line(".".join(str(one)[:40] for one in first["loc"])) or "the file"
        raise BadInput(f"{where}: expected a description of a model, but {field}: {reason}. "
                       f"An example:\n{EXAMPLE}") from error
    except RecursionError as error:
        raise BadInput(f"{where}: expected a description of a model, but it is nested too deeply.") from error


def find_description(onnx_file: Path, metadata: dict[str, str]) -> Found | None:
    """The description that comes with an ONNX file: in its metadata, or in a file of the same name beside it.

    Raises:
        BadInput: One of them is not valid, or there are several that differ.
        MissingPackage: One is in YAML, and PyYAML is not installed.
    """
    found = []
    if KEY in metadata:
        try:
            value = _parse_json(metadata[KEY])
        except ValueError as error:
            raise BadInput(f"{onnx_file}: the description in its metadata is not valid ({_line(error)}). Export the "
                           "model again.") from error
        found.append(Found(parse(value, f"the metadata of {onnx_file.name}"), f"the metadata of {onnx_file.name}"))
    beside = [onnx_file.with_suffix(suffix) for suffix in SUFFIXES]
    found += [Found(describe(path), path.name) for path in beside if os.path.isfile(path)]
    if other := next((one for one in found if one.description != found[0].description), None):
        raise BadInput(f"{onnx_file}: expected one description, received two that differ, {found[0].source} and "
                       f"{other.source}. Remove one, or say which holds: --description FILE, or description= of load.")
    return found[0] if found else None


def to_metadata(description: Description) -> dict[str, str]:
    """The metadata entry that describes an ONNX file."""
    return {KEY: json.dumps(description.to_json())}


def _parse_json(text: str) -> Any:
    parse_json(text)  # checks what json accepts and no other reader does
    return json.loads(text, object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    if twice := {key for i, (key, _) in enumerate(pairs) if any(key == one for one, _ in pairs[:i])}:
        raise ValueError(f"the key {min(twice)!r:.60} is there twice")
    return dict(pairs)


def _parse_yaml(text: str) -> Any:
    try:
        import yaml
    except ImportError as error:
        raise missing_package("yaml", "export", "read a description in YAML; JSON needs no package") from error

    class Loader(yaml.SafeLoader):
        """Plain values alone, whose keys differ."""

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            _distinct([(key, None) for key in keys])
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(text, Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(str(error)) from error
    except Exception as error:  # a tag such as !!int around another value raises what its conversion raises
        raise ValueError("a value does not fit its tag") from error


def _line(error: Exception | str) -> str:
    return " ".join("".join(one if one.isprintable() else " " for one in str(error)).split())[:200]
