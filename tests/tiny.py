"""A tiny model whose maps follow the image, its bundle, and images for it; shared by tests of several folders."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt_deploy import backends
from dpt_deploy.build import EngineOptions
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.contract import Contract
from dpt_deploy.core.manifest import Artifact, PrecisionPlan
from dpt_deploy.export.config import ExportConfig
from dpt_deploy.export.frame_graph import export_frame_graph
from dpt_deploy.export.network import Network
from dpt_deploy.export.pipeline import export_checkpoint
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model, save_checkpoint
from dpt_deploy.parity.images import scene

FP32 = PrecisionPlan("fp32", ())


def lively_model(seed: int = 0) -> MultiTaskDPT:
    """A random model with input 160x160 whose maps vary over an image, as a trained one's do.

    A fresh model predicts nearly the same everywhere: a flipped or shifted map would go unseen. The
    normals lean towards the viewer and most of alpha is foreground, as in pictures of people: FP16
    turns a short vector by a large angle, and moves the edge of an alpha that is near 0.5 everywhere.
    """
    torch.manual_seed(seed)
    model = create_multitask_dpt_model("test_vit", features=32).eval()
    h, w = model.input_size
    image = torch.from_numpy(scene(h, w, seed)).permute(2, 0, 1)[None].float() / 127.5 - 1
    spread = {"depth": 0.3, "normals": 0.4, "alpha": 2.0}
    with torch.no_grad():
        for name, head in model.heads.items():
            seen: list[torch.Tensor] = []
            hook = head.conv3.register_forward_pre_hook(lambda _module, args, seen=seen: seen.append(args[0]))
            model(image)
            hook.remove()
            x = seen[0].permute(0, 2, 3, 1).reshape(-1, 32)
            weight = torch.randn(head.conv3.weight.shape[:2])
            y = x @ weight.T
            weight *= (spread[name] / y.std(dim=0))[:, None]
            head.conv3.weight.copy_(weight[:, :, None, None])
            head.conv3.bias.copy_(-(x @ weight.T).mean(dim=0))
        model.heads["normals"].conv3.bias[2] += 1.2
        model.heads["alpha"].conv3.bias += 3.0
    return model


def export_frame(
    model: MultiTaskDPT, contract: Contract, path: Path, plan: PrecisionPlan = FP32, opset: int = 23
) -> None:
    """Write a frame graph without its model graph."""
    network = path.with_name(f"network.{path.name}")
    Network(model, contract, opset).export(plan, network, {})
    export_frame_graph(contract, network, path, {})
    network.unlink()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the tiny model, with FP16 TensorRT-RTX engines; made once for all worker processes. Read only.

    DPT_TINY_BUNDLE=FOLDER keeps it between runs, for work on code that does not change what an export writes.
    """
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    if kept := os.environ.get("DPT_TINY_BUNDLE"):
        shared = Path(kept)
        shared.mkdir(parents=True, exist_ok=True)
    folder = shared / "tiny"
    with open(shared / "tiny.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "tiny.done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            save_checkpoint(shared / "tiny.pth", lively_model())
            engines = EngineOptions(builder="tensorrt-rtx")
            export_checkpoint(ExportConfig(shared / "tiny.pth", folder, engines=engines), say=lambda line: None)
            (shared / "tiny.done").touch()
    return folder


@pytest.fixture
def own_bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle that a test may change."""
    folder = tmp_path / "own"
    return Path(shutil.copytree(tiny_bundle, folder, ignore=shutil.ignore_patterns("reference.npz")))


def photo(height: int, width: int, seed: int = 7) -> np.ndarray:
    """A picture, uint8 (height, width, 3) RGB."""
    return scene(height, width, seed)


def open_session(
    bundle: Bundle, artifact: Artifact, backend: str, threads: int | None = None, precision: str | None = None
) -> backends.Session:
    """A session on one artefact, by the backend's name."""
    return backends.get(backend).open(bundle, artifact, backends.SessionOptions(threads, precision))


def change_details(bundle: Bundle, artifact: Artifact, **details: object) -> Artifact:
    """Let the manifest say something else about an artefact, in memory. Returns the artefact."""
    changed = artifact.model_copy(update={"details": artifact.details.model_copy(update=details)})
    bundle.update(artifacts=tuple(changed if one is artifact else one for one in bundle.artifacts))
    return changed


CANONICAL_FOCAL = 200.0
"""Of `canonical_bundle` [pixels of the network's input, 160x160]."""


@pytest.fixture
def canonical_bundle(own_bundle: Path) -> Path:
    """A copy of the tiny bundle whose training record says --canonical-focal 200."""
    bundle = Bundle.open(own_bundle)
    training = dict(bundle.manifest.training) | {"canonical_focal": CANONICAL_FOCAL}
    bundle.manifest = bundle.manifest.model_copy(update={"training": training})
    bundle.save()
    return own_bundle
