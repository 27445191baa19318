"""david.onnx gives DAViD's estimator the same maps, by the pre- and post-processing that its project documents."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

import dpt_deploy
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput
from dpt_deploy.core.metrics import angle
from dpt_deploy.export.compat import check_compat, export_david, judge_david
from dpt_deploy.export.pytorch_reference import make_reference
from dpt_deploy.parity import load_budget
from dpt_deploy.parity.images import scene
from dpt_deploy.parity.judge import WorstMaps
from tests.tiny import lively_model


def documented(path: Path, image: np.ndarray) -> dict[str, np.ndarray]:
    """The maps of `image`, uint8 (H, W, 3) BGR, as the project's README and model card describe the estimator.

    The image in [0, 1] is padded to a square by replication, made 512x512, and run; outputs are taken by position and
    resized back with cubic interpolation; depth is negated, normals get unit length, the mask is clipped.
    """
    h, w = image.shape[:2]
    side = max(h, w)
    top, left = (side - h) // 2, (side - w) // 2
    square = cv2.copyMakeBorder((image / 255.0).astype(np.float32), top, side - h - top, left, side - w - left,
                                cv2.BORDER_REPLICATE)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    small = cv2.resize(square, (512, 512), interpolation=cv2.INTER_LINEAR)
    depth, normal, mask = session.run(None, {session.get_inputs()[0].name: small.transpose(2, 0, 1)[None]})

    def back(x: np.ndarray) -> np.ndarray:
        return cv2.resize(x, (side, side), interpolation=cv2.INTER_CUBIC)[top : top + h, left : left + w]

    vectors = back(normal[0].transpose(1, 2, 0))
    return {"depth": -back(depth[0]), "normals": vectors / np.linalg.norm(vectors, axis=-1, keepdims=True),
            "alpha": np.clip(back(mask[0].transpose(1, 2, 0)), 0, 1)}


@pytest.fixture
def david(own_bundle: Path) -> Path:
    return own_bundle / export_david(Bundle.open(own_bundle)).file


@pytest.mark.parametrize(("size", "tolerance"), [((512, 512), 1e-5), ((300, 420), 2e-3), ((420, 300), 2e-3)])
def test_the_documented_estimator_and_our_runtime_agree(
    david: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], tolerance: float
) -> None:
    """To rounding where nothing is resized; elsewhere, cubic interpolation differs from ours by a little."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    frame = scene(*size, 3)
    theirs = documented(david, np.ascontiguousarray(frame[..., ::-1]))
    with dpt_deploy.load(david, measure=False) as runtime:
        assert runtime.assumed == () and runtime.bundle.contract.depth == "metric"
        ours = runtime(frame)
    assert np.abs(-theirs["depth"] / ours.depth - 1).mean() < tolerance
    assert angle(theirs["normals"], ours.normals).mean() < 200 * tolerance
    assert np.abs(theirs["alpha"] - ours.alpha).mean() < tolerance
    shifted = np.roll(theirs["depth"], 2, axis=(0, 1))
    assert np.abs(-shifted / ours.depth - 1).mean() > 5 * tolerance


def test_outputs_stand_in_its_order_and_shapes(david: Path) -> None:
    session = onnxruntime.InferenceSession(str(david), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape[1:] == [3, 512, 512]
    depth, normal, mask = session.run(None, {session.get_inputs()[0].name: np.zeros((2, 3, 512, 512), np.float32)})
    assert (depth.shape, normal.shape, mask.shape) == ((2, 512, 512), (2, 3, 512, 512), (2, 1, 512, 512))
    assert depth.min() > 0 and 0 <= mask.min() and mask.max() <= 1


def test_its_stage_passes_and_fails_on_a_changed_graph(own_bundle: Path) -> None:
    bundle = Bundle.open(own_bundle)
    graphs, model = bundle.find("onnx"), lively_model()
    reference = make_reference(model, bundle.contract, [("scene", False, scene(200, 150, 3))])
    budget, _ = load_budget(None)
    artifact = export_david(bundle)
    assert judge_david(bundle, artifact, model, reference, budget, WorstMaps()).passed
    graph = onnx.load(own_bundle / artifact.file)
    (order,) = [tensor for tensor in graph.graph.initializer if tensor.name == "david/before/order"]
    order.raw_data = np.array([0, 1, 2], np.int64).tobytes()  # RGB where it should be BGR
    onnx.save(graph, own_bundle / artifact.file)
    changed = bundle.add(artifact.file, "compat", graph="model", precision="fp32")
    stage = judge_david(bundle, changed, model, reference, budget, WorstMaps())
    assert not stage.passed and stage.findings
    assert bundle.find("onnx") == graphs


def test_a_model_without_all_heads_is_refused() -> None:
    with pytest.raises(BadInput, match="depth, normals, alpha"):
        check_compat(dataclasses.replace(Contract(), heads=("depth", "alpha")))
