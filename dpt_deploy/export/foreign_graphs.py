"""The frame graph of an imported model, and the model's own maps to compare with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.version_converter
import torch
from torch import nn

from ..core.bundle import Bundle
from ..core.contract import Contract
from ..core.errors import BadInput, first_line, missing_package
from ..core.files import replacing
from ..core.plan import PrecisionPlan
from ..foreign import Description
from ..model.frame import FrameModel
from .frame_graph import export_frame_graph, trace_processing

OPSETS = (20, 23)
"""The opsets of pre- and post-processing; a model of another one is converted to the next."""


def opset_of(model: onnx.ModelProto) -> int:
    """The opset of the bundle's graphs for a foreign model. Raises `BadInput` if it is too new."""
    have = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if have > OPSETS[-1]:
        raise BadInput(f"expected a model of opset {OPSETS[-1]} or older, received opset {have}. Export it again with "
                       "an older one.")
    return next(opset for opset in OPSETS if have <= opset)


def at_opset(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model converted to an opset. Raises `BadInput` if onnx cannot convert it."""
    if any(entry.version == opset for entry in model.opset_import if entry.domain in ("", "ai.onnx")):
        return model
    try:
        return onnx.version_converter.convert_version(model, opset)
    except Exception as error:  # the converter raises exceptions of many types
        raise BadInput(f"expected a model that onnx can convert to opset {opset}, received one that it cannot "
                       f"({first_line(error)}). Export it again at opset {opset}.") from error


def session_of(path: Path):
    """ONNX Runtime on the foreign file itself, on the CPU. Raises `BadInput` if it cannot load it."""
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "cpu", "compare an imported model with itself") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base class
        raise BadInput(f"{path}: expected a model that ONNX Runtime can load, received one that it cannot "
                       f"({first_line(error)}).") from error


class ForeignModel:
    """The foreign file as it is, under the contract's names. Written apart from `foreign.adapt`, to judge it."""

    def __init__(self, session, description: Description) -> None:
        self.session, self.description = session, description

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Normalised RGB (1, 3, h, w) -> depth (1, 1, h, w), normals (1, 3, h, w), alpha_logits (1, 1, h, w)."""
        # The description's mean and std are in the file's own channel order, as its image is.
        image = image.flip(1) if self.description.input.colours == "bgr" else image
        received = self.session.run(None, {self.session.get_inputs()[0].name: image.numpy()})
        names = [value.name for value in self.session.get_outputs()]
        outputs, found = self.description.outputs, {}

        def take(wanted: int | str) -> torch.Tensor:
            return torch.from_numpy(np.array(received[wanted if isinstance(wanted, int) else names.index(wanted)]))

        if (depth := outputs.depth) is not None:
            value = take(depth.output) * (depth.metres if depth.kind == "metric" else 1)
            found["depth"] = self._map(-value if depth.larger == "nearer" else value, image)
        if (normals := outputs.normals) is not None:
            channels = dict(zip(normals.axes, take(normals.output).unbind(1), strict=True))
            found["normals"] = torch.stack([channels[plus] if plus in channels else -channels[minus] for plus, minus in
                                            (("right", "left"), ("up", "down"), ("viewer", "away"))], dim=1)
        if (alpha := outputs.alpha) is not None:
            value = self._map(take(alpha.output), image)
            found["alpha_logits"] = value if alpha.values == "logits" else torch.logit(value, eps=1e-7)
        for head, value in found.items():
            if value.shape[-2:] != image.shape[-2:]:
                raise BadInput(f"expected {head} of the input's size {list(image.shape[-2:])}, received "
                               f"{list(value.shape[-2:])}. Resize it in the graph, for example with a Resize node.")
        return found

    @staticmethod
    def _map(value: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
        return value.reshape(len(image), 1, *value.shape[-2:])


def frame_graph(bundle: Bundle, contract: Contract, opset: int) -> None:
    """Add the frame graph in FP32 around the bundle's model graph."""
    (network,) = bundle.find("onnx", graph="model", precision="fp32")
    path = bundle.folder / "frame.fp32.onnx"
    plan = PrecisionPlan("fp32", ())
    export_frame_graph(trace_processing(FrameModel(nn.Identity(), contract), opset), bundle.folder / network.file, path,
                       {})
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
