"""What a server says about a model: its outputs, its limits, and the graph that its maps come from."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..core.compact import Form, form_of_output
from ..core.contract import DEPTHS, HEADS, MAX_INPUT_SIZE, MAX_NUMBER, RESIZE_RULES, DepthKind, frame_focal
from ..core.errors import BadInput

_SIZE = re.compile(r"[0-9]{1,5}x[0-9]{1,5}")


@dataclass(frozen=True)
class ServedModel:
    """A model of a server that `dpt triton` wrote."""

    name: str
    forms: Mapping[str, tuple[Form, ...]]
    """By head, in the order of the contract: the forms in which the server gives the map."""
    max_batch: int
    max_pixels: int
    """Most pixels of all frames of a request."""
    bundle: str
    """Name of the bundle."""
    graph: str
    """File name of the frame graph that the maps come from, in the bundle."""
    graph_sha256: str
    precision: str
    depth_kind: DepthKind = "metric"
    """What depth is, as the bundle's contract says."""
    canonical_focal: float = 0.0
    """The focal length for which depth is in metres [pixels of the network's input]; 0: for any."""
    input_size: tuple[int, int] = (0, 0)
    """(H, W) of the network's input [pixels]; known if there is a canonical focal length, as `resize` is."""
    resize: str = ""

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the model."""
        return tuple(self.forms)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ServedModel:
        """The model of a configuration as Triton returns it. Raises `BadInput` if it is not one of this project."""
        name = config.get("name", "")
        parameters = {key: entry.get("string_value", "") for key, entry in config.get("parameters", {}).items()}
        found = [form_of_output(entry["name"]) for entry in config.get("output", [])]
        forms = {head: tuple(one for one in found if one is not None and one.head == head) for head in HEADS}
        forms = {head: known for head, known in forms.items() if known}
        depth_kind = parameters.get("dpt_depth", "metric")
        if depth_kind not in DEPTHS:
            raise BadInput(f"model {name}: expected depth of a kind among {', '.join(DEPTHS)}, received "
                           f"{depth_kind!r:.100}. Write the model again with: dpt triton BUNDLE")
        canonical = _canonical(name, parameters)
        try:
            return cls(name, forms, max(1, int(config.get("max_batch_size", 0))), int(parameters["max_pixels"]),
                       parameters["dpt_bundle"], parameters["dpt_graph"], parameters["dpt_graph_sha256"],
                       parameters["dpt_precision"], depth_kind, *canonical)
        except (KeyError, ValueError) as error:
            raise BadInput(f"model {name}: expected a model that dpt triton wrote, received one without {error}. "
                           "Choose another model, or write it with: dpt triton BUNDLE") from error

    def frame_focal(self, size: tuple[int, int]) -> float:
        """The canonical focal length in pixels of a frame of `size` (H, W); 0: depth is in metres for any."""
        return frame_focal(self.canonical_focal, size, self.input_size, self.resize) if self.canonical_focal else 0.0

    def chosen(self, forms: Mapping[str, str] | str | None) -> dict[str, Form]:
        """The form to request for each head: as named, the smallest for "smallest", else float32.

        Raises `BadInput` for a form that the server does not give.
        """
        if forms is None:
            forms = {}
        elif forms == "smallest":
            return {head: min(known, key=lambda one: one.bytes) for head, known in self.forms.items()}
        elif isinstance(forms, str):
            raise BadInput(f"forms: expected a form for each head or \"smallest\", received {forms!r}.")
        if unknown := [head for head in forms if head not in self.forms]:
            raise BadInput(f"forms: expected heads among {', '.join(self.forms)}, received {', '.join(unknown)}.")
        chosen = {}
        for head, known in self.forms.items():
            wanted = forms.get(head, "float32")
            match = [one for one in known if one.name == wanted]
            if not match:
                raise BadInput(f"forms: model {self.name} gives {head} as {', '.join(one.name for one in known)}, not "
                               f"as {wanted}. Write the model again with: dpt triton BUNDLE --compact {head}={wanted}")
            chosen[head] = match[0]
        return chosen


def _canonical(name: str, parameters: Mapping[str, str]) -> tuple[float, tuple[int, int], str]:
    """The canonical focal length, the size of the network's input and the resize rule; 0 first if there is none."""
    if (focal := parameters.get("dpt_canonical_focal")) is None:
        return 0.0, (0, 0), ""
    size, resize = parameters.get("dpt_input_size", ""), parameters.get("dpt_resize", "")
    with contextlib.suppress(ValueError):
        numbers = [int(side) for side in size.split("x")] if _SIZE.fullmatch(size) else []
        height, width = numbers
        if 0 < float(focal) <= MAX_NUMBER and 1 <= min(numbers) and max(numbers) <= MAX_INPUT_SIZE \
                and resize in RESIZE_RULES:
            return float(focal), (height, width), resize
    raise BadInput(f"model {name}: expected dpt_canonical_focal above 0 with dpt_input_size HEIGHTxWIDTH and "
                   f"dpt_resize among {', '.join(RESIZE_RULES)}, received {focal!r:.50}, {size!r:.50} and "
                   f"{resize!r:.50}. Write the model again with: dpt triton BUNDLE")
