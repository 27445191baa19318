"""What `python -m demo` prints of a model on held-out people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from demo import __main__ as demo
from dpt_deploy.model import create_multitask_dpt_model, save_checkpoint


def test_scores_stand_beside_those_of_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    torch.manual_seed(0)
    save_checkpoint(tmp_path / "m.pth", create_multitask_dpt_model(
        "test_vit", features=8, depth_scale=1.0, backbone_kwargs={"img_size": 64}))
    for name, value in {"BUNDLE": tmp_path / "m.pth", "OUT": tmp_path, "COUNT": 6, "SIZE": 64}.items():
        monkeypatch.setattr(demo, name, value)
    demo.print_scores()
    assert "normals mean [deg]" in capsys.readouterr().out
    result = json.loads((tmp_path / "metrics.json").read_text())
    assert result["samples"] == 6
    assert set(result["metrics"]["all"]) == set(result["constant"]["all"])
