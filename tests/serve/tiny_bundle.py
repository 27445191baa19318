"""python -m tests.serve.tiny_bundle FOLDER: the tiny bundle, for the server's environment, which has no torch."""

from __future__ import annotations

import sys
from pathlib import Path

from dpt_deploy.build import EngineOptions
from dpt_deploy.export.config import ExportConfig
from dpt_deploy.export.pipeline import export_checkpoint
from dpt_deploy.model import save_checkpoint
from tests.tiny import lively_model

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(folder / "tiny.pth", lively_model())
    export_checkpoint(ExportConfig(folder / "tiny.pth", folder / "tiny", precision="fp32", parity="quick",
                                   engines=EngineOptions(builder="none")), say=lambda line: None)
