"""The frame graph of an imported model, and the model's own maps to compare with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import torch

from ..core.bundle import Bundle
from ..core.contract import Contract
from ..core.errors import BadInput, first_line
from ..core.files import replacing
from ..core.plan import PrecisionPlan
from ..foreign import Description
from ..foreign.adapt import opset_of, output_names
from ..foreign.bundle import ForeignFile
from ..foreign.graph import check_output, measured, run, session_of
from .frame_graph import export_frame_graph

OPSETS = (20, 23)
"""The opsets of a bundle's graphs; a model of another one is converted to the next."""


def at_bundle_opset(source: ForeignFile) -> tuple[ForeignFile, int]:
    """The model converted to the opset of the bundle's graphs, and that opset.

    Raises `BadInput` if its opset is too new, or onnx cannot convert it.
    """
    have = opset_of(source.model)
    if have > OPSETS[-1]:
        raise BadInput(f"{source.path}: expected a model of opset {OPSETS[-1]} or older, received opset {have}. Export "
                       "it again with an older one.")
    opset = next(opset for opset in OPSETS if have <= opset)
    if have == opset:
        return source, opset
    try:
        model = onnx.version_converter.convert_version(source.model, opset)
    except Exception as error:  # the converter raises exceptions of many types
        raise BadInput(f"{source.path}: expected a model that onnx can convert to opset {opset}, received one that it "
                       f"cannot ({first_line(error)}). Export it again at opset {opset}.") from error
    return dataclasses.replace(source, model=model), opset


class ForeignModel:
    """The foreign file as it is, under the contract's names. Written apart from `foreign.adapt`, to judge it."""

    def __init__(self, source: ForeignFile, description: Description) -> None:
        """Load the file in ONNX Runtime. Raises `BadInput` if that cannot load it, or an output is not there."""
        self.session, self.description = session_of(source.path), description
        self.where = source.path.name
        self.names = output_names(source.model, description, self.where)

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised RGB (1, 3, h, w) -> depth (1, 1, h, w), normals (1, 3, h, w), alpha_logits (1, 1, h, w).

        Raises `BadInput` if the model fails, or an output is not a map of the input's size.
        """
        # The description's mean and std are in the file's own channel order, as its image is.
        image = image.flip(1) if self.description.input.colours == "bgr" else image
        received = run(self.session, image.numpy(), self.where)
        outputs, found = self.description.outputs, {}

        def take(head: str) -> torch.Tensor:
            name = self.names[head]
            check_output(head, measured(name, received[name]), self.description, tuple(image.shape[-2:]), self.where)
            return torch.from_numpy(received[name].astype(np.float32))

        if (depth := outputs.depth) is not None:
            value = take("depth") * (depth.metres if depth.kind == "metric" else 1)
            found["depth"] = self._map(-value if depth.larger == "nearer" else value)
        if (normals := outputs.normals) is not None:
            channels = dict(zip(normals.axes, take("normals").unbind(1), strict=True))
            found["normals"] = torch.stack([channels[plus] if plus in channels else -channels[minus] for plus, minus in
                                            (("right", "left"), ("up", "down"), ("viewer", "away"))], dim=1)
        if (alpha := outputs.alpha) is not None:
            value = self._map(take("alpha"))
            found["alpha_logits"] = value if alpha.values == "logits" else torch.logit(value, eps=1e-7)
        return found

    @staticmethod
    def _map(value: torch.Tensor) -> torch.Tensor:
        return value.reshape(len(value), 1, *value.shape[-2:])


def frame_graph(bundle: Bundle, contract: Contract, opset: int) -> None:
    """Add the frame graph in FP32 around the bundle's model graph."""
    (network,) = bundle.find("onnx", graph="model", precision="fp32")
    path = bundle.folder / "frame.fp32.onnx"
    plan = PrecisionPlan("fp32", ())
    export_frame_graph(contract, bundle.folder / network.file, path, {})
    _keep_fixed_batch(bundle.folder / network.file, path)
    bundle.add(path.name, "onnx", graph="frame", precision="fp32", details={"opset": opset, "plan": plan.to_json()})


def _keep_fixed_batch(network: Path, path: Path) -> None:
    """State the batch in the frame graph that a foreign model fixes."""
    source = onnx.load(network, load_external_data=False)
    batch = source.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    if not batch:
        return
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = batch
    with replacing(path) as temporary:
        onnx.save(model, temporary)
