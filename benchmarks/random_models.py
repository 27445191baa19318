"""Bundles of models with random weights: neither time nor memory depends on the weights."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.results import log
from dpt_deploy import cli
from dpt_deploy.core.bundle import MANIFEST, Bundle
from dpt_deploy.core.contract import HEADS
from dpt_deploy.core.errors import BuildError
from dpt_deploy.core.manifest import Manifest, ModelRecord, PrecisionPlan

ROOT = Path(__file__).resolve().parents[1]


def vit_base_bundle(calibrate: Path | None = None) -> Path:
    """ViT-B at 384, exported and judged by the export command; created once, in engines/bench-vitb.

    With `calibrate`, a folder of images, also in INT8.
    """
    folder = Path("engines") / "bench-vitb"
    if (folder / "parity.json").exists() and (calibrate is None or _has_int8(folder)):
        return folder
    with cli.needing("export"):
        import torch

        from dpt_deploy.model import create_multitask_dpt_model, save_checkpoint

    checkpoint = folder.with_suffix(".pth")
    torch.manual_seed(0)
    save_checkpoint(checkpoint, create_multitask_dpt_model("vit_base_patch16_384"))
    command = [sys.executable, "-m", "dpt_deploy.export", str(checkpoint), "--out", str(folder)]
    if platform.machine() != "x86_64" or not any(map(importlib.util.find_spec, ("tensorrt", "tensorrt_rtx"))):
        command += ["--builder", "none"]
    exports = [command] if not (folder / "parity.json").exists() else []
    if calibrate is not None:
        exports.append([*command, "--precision", "int8", "--calibrate", str(calibrate), "--no-search"])
    for export in exports:
        log(f"exporting {folder}")
        done = subprocess.run(export, capture_output=True, text=True, check=False, env=_environment())
        made = (folder / "parity.json").exists() and ("int8" not in export or _has_int8(folder))
        if not made:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise BuildError(f"could not export the model to time: {reason}")
    return folder


def _environment() -> dict[str, str]:
    """The environment of this process, in which this repository is found from any working folder."""
    known = os.environ.get("PYTHONPATH")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *([known] if known else [])])}


def _has_int8(folder: Path) -> bool:
    return bool(Bundle.open(folder).find("onnx", precision="int8"))


def frame_graph_bundle(folder: Path, backbone: str, heads: tuple[str, ...] = HEADS, **options: Any) -> Path:
    """A bundle that holds only the FP32 frame graph, without a verdict; created once, in `folder`.

    `options` are more of `create_multitask_dpt_model`.
    """
    if (folder / MANIFEST).exists():
        return folder
    with cli.needing("export"):
        import torch

        from dpt_deploy.export.frame_graph import export_frame_graph
        from dpt_deploy.export.network import Network
        from dpt_deploy.model import create_multitask_dpt_model

    log(f"exporting {folder.name}")
    torch.manual_seed(0)
    model = create_multitask_dpt_model(backbone, heads=heads, **options).eval()
    contract, file = model.contract(), "frame.fp32.onnx"
    manifest = Manifest(name=folder.name, contract=contract.to_json(),
                        model=ModelRecord.model_validate(model.config.to_json()))
    bundle = Bundle.create(folder, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / "model.fp32.onnx"
    Network(model, contract, 23).export(PrecisionPlan("fp32", ()), network, {})
    export_frame_graph(contract, network, folder / file, {})
    network.unlink()
    bundle.add(file, "onnx", graph="frame", precision="fp32")
    return folder
