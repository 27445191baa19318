"""A graph for the estimator of the DAViD project, made from a bundle's model graph, and its parity stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx.compose
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import nn

from ..core.bundle import Bundle, Recipe
from ..core.contract import Contract, content_box, resize_weights
from ..core.errors import BadInput
from ..core.files import replacing
from ..core.manifest import Artifact
from ..core.onnx_nodes import Nodes, surround
from ..core.verdict import Budget, Stage, StageId, StageKind
from ..foreign.describe import Description, to_metadata
from ..parity.compare import compare, load_budget
from ..parity.judge import WorstMaps
from ..parity.reference import Case, Reference
from .config import ExportConfig

SIZE = 512
"""Height and width that the estimator resizes to [pixels]."""
FILE = "david.onnx"
TITLE = "DAViD estimator graph"
DESCRIPTION = Description.model_validate({
    "input": {"size": [SIZE, SIZE], "colours": "bgr", "resize": "letterbox"},
    "outputs": {"depth": {"output": "depth", "kind": "metric"}, "normals": {"output": "normal"},
                "alpha": {"output": "foreground"}},
})
"""Loads the graph back with `dpt_deploy.load`."""
HEADS = ("depth", "normals", "alpha")
ALPHA_EPSILON = 1e-7


def check_compat(contract: Contract) -> None:
    """Raise `BadInput` if a model cannot serve that estimator, which takes all three maps by position."""
    if contract.heads != HEADS:
        raise BadInput(f"--compat david: expected a model with the heads {', '.join(HEADS)}, received "
                       f"{', '.join(contract.heads)}. Export all heads.")


def compat_stages(
    bundle: Bundle, model: nn.Module, reference: Reference, config: ExportConfig, say: Callable[[str], None],
    worst: WorstMaps,
) -> list[Stage]:
    """Write and judge the graph that `--compat` asks for; without the option, remove an earlier one."""
    if config.compat is None:
        for artifact in bundle.find("compat"):
            bundle.remove(artifact)
        return []
    artifact = export_david(bundle)
    say(f"exported {artifact.file} ({artifact.bytes / 1e6:.0f} MB)")
    say(f"judging  {TITLE}")
    budget, _ = load_budget(config.budget)
    return [judge_david(bundle, artifact, model, reference, budget, worst)]


def export_david(bundle: Bundle) -> Artifact:
    """Add the graph to a bundle that has the model graph in FP32; an unchanged one is kept.

    Its input is float32 (N, 3, 512, 512), BGR in [0, 1]. Its outputs, by position, are depth (N, 512, 512) [m], normals
    (N, 3, 512, 512) and alpha (N, 1, 512, 512) in [0, 1].
    """
    (network,) = bundle.find("onnx", graph="model", precision="fp32")

    def make(path: Path) -> dict[str, str]:
        model = david_graph(onnx.load(bundle.path(network)), bundle.contract)
        with replacing(path) as temporary:
            onnx.save(model, temporary)
        return {"layout": "david", "made_from": network.sha256}

    key = bundle.manifest.key(FILE, network.sha256, SIZE)
    return bundle.produce(Recipe(FILE, "compat", key, make, "model", "fp32"))[0]


def david_graph(model: onnx.ModelProto, contract: Contract) -> onnx.ModelProto:
    """The model graph with colour order, normalisation, sigmoid and both resizes of that estimator as nodes."""
    model = onnx.compose.add_prefix(model, "network/")
    h, w = contract.input_size
    before, after = Nodes("david/before/"), Nodes("david/after/")

    def resize(add: Nodes, value: str, size_in: tuple[int, int], size_out: tuple[int, int]) -> str:
        if size_in == size_out:
            return value
        rows = add.constant(resize_weights(size_in[0], size_out[0]))
        columns = add.constant(resize_weights(size_in[1], size_out[1]).T.copy())
        return add("MatMul", rows, add("MatMul", value, columns))

    rgb = before("Gather", "input", before.constant(np.array([2, 1, 0]), "order"), axis=1)
    small = resize(before, rgb, (SIZE, SIZE), (h, w))
    mean, std = (np.array(values, np.float32).reshape(3, 1, 1) for values in (contract.mean, contract.std))
    before("Div", before("Sub", small, before.constant(mean)), before.constant(std), output="network/image")
    depth = resize(after, "network/depth", (h, w), (SIZE, SIZE))
    after("Squeeze", depth, after.integers(1), output="depth")
    after("Identity", resize(after, "network/normals", (h, w), (SIZE, SIZE)), output="normal")
    alpha = after("Sigmoid", "network/alpha_logits")
    after("Identity", resize(after, alpha, (h, w), (SIZE, SIZE)), output="foreground")
    graph = model.graph
    surround(graph, before, after)
    del model.metadata_props[:]

    def value(name: str, *axes: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *axes])

    graph.input.append(value("input", 3, SIZE, SIZE))
    graph.output.extend([value("depth", SIZE, SIZE), value("normal", 3, SIZE, SIZE),
                         value("foreground", 1, SIZE, SIZE)])
    for key, text in {**to_metadata(DESCRIPTION), "contract": json.dumps(contract.to_json())}.items():
        model.metadata_props.add(key=key, value=text)
    onnx.checker.check_model(model, full_check=True)
    return model


def judge_david(
    bundle: Bundle, artifact: Artifact, model: nn.Module, reference: Reference, budget: Budget, worst: WorstMaps
) -> Stage:
    """Compare the graph in ONNX Runtime with PyTorch FP32, on the parity inputs as that estimator would prepare them.

    PyTorch does the colours, the normalisation and the resizes with operators of its own.
    """
    import onnxruntime

    stage = StageId(StageKind.COMPAT, "model", "fp32", "onnxruntime-cpu", file=artifact.file, title=TITLE)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised
    session = onnxruntime.InferenceSession(str(bundle.path(artifact)), options, providers=["CPUExecutionProvider"])
    contract = bundle.contract

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        depth, normals, alpha = session.run(None, {"input": images})
        inside = np.clip(alpha.astype(np.float64), ALPHA_EPSILON, 1 - ALPHA_EPSILON)
        return {"depth": depth[:, None], "normals": normals, "alpha_logits": np.log(inside / (1 - inside))}

    cases = []
    for case in reference.cases:
        image = _prepared(case.frame)
        maps = {name: values.numpy()[0] for name, values in _in_torch(model, torch.from_numpy(image[None]),
                                                                      contract).items()}
        cases.append(Case(case.name, case.adversarial, case.frame, image, {"model": maps}))
    return compare(stage, run, Reference(tuple(cases), contract.heads), budget, artifact.sha256, on_exhibit=worst)


def _prepared(frame: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) RGB -> float32 (3, 512, 512) BGR in [0, 1], padded to a square by its edge."""
    box = content_box(frame.shape[:2], (SIZE, SIZE), "letterbox")
    x = torch.from_numpy(np.array(frame[..., ::-1])).permute(2, 0, 1)[None].float() / 255
    x = F.interpolate(x, (box.height, box.width), mode="bilinear", antialias=True, align_corners=False)
    x = F.pad(x, (box.left, SIZE - box.left - box.width, box.top, SIZE - box.top - box.height), mode="replicate")
    return x[0].numpy()


def _in_torch(model: nn.Module, images: torch.Tensor, contract: Contract) -> dict[str, torch.Tensor]:
    """BGR in [0, 1] (N, 3, 512, 512) -> the maps at 512x512 under the contract's names."""
    def resized(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        return F.interpolate(x, size, mode="bilinear", antialias=True, align_corners=False)

    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (contract.mean, contract.std))
    with torch.no_grad():
        maps = model((resized(images.flip(1), contract.input_size) - mean) / std)
    square = (SIZE, SIZE)
    alpha = resized(torch.sigmoid(maps["alpha_logits"]), square)
    return {"depth": resized(maps["depth"], square), "normals": resized(maps["normals"], square),
            "alpha_logits": torch.logit(alpha.double(), eps=ALPHA_EPSILON)}
