"""A tiny model whose maps follow the image, its bundle, and images for it; shared by tests of several folders."""

from __future__ import annotations

import fcntl
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dpt_deploy.build import EngineOptions
from dpt_deploy.export import ExportConfig, export
from dpt_deploy.model import MultiTaskDPT, create_multitask_dpt_model, save_checkpoint
from dpt_deploy.parity.images import scene


def lively_model(seed: int = 0) -> MultiTaskDPT:
    """A random model with input 160x160 whose maps vary over an image, as a trained one's do.

    A fresh model predicts nearly the same everywhere: a flipped or shifted map would go unseen.
    """
    torch.manual_seed(seed)
    model = create_multitask_dpt_model("test_vit", features=32).eval()
    h, w = model.input_size
    image = torch.from_numpy(scene(h, w, seed)).permute(2, 0, 1)[None].float() / 127.5 - 1
    spread = {"depth": 0.5, "normals": 0.4, "alpha": 3.0}
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
    return model


def shared(folder: str, factory: pytest.TempPathFactory, worker: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` fills, made once for all worker processes of a test run."""
    base = factory.getbasetemp()
    path = (base if worker == "master" else base.parent) / folder
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (path / "done").exists():
            make(path)
            (path / "done").touch()
    return path


def export_tiny(folder: Path, resize: str = "stretch", builder: str = "none", precision: str = "fp32") -> None:
    """Export the tiny model into `folder`/tiny."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "tiny.pth", lively_model())
    export(ExportConfig(
        folder / "tiny.pth", folder / "tiny", resize=resize, precision=precision, engines=EngineOptions(builder=builder)
    ), say=lambda line: None)


def photo(height: int, width: int, seed: int = 7) -> np.ndarray:
    """A picture, uint8 (height, width, 3) RGB."""
    return scene(height, width, seed)
