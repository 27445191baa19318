"""Export a checkpoint from Python and look at the verdict.

    python examples/export_checkpoint.py best_model.pth engines/best_model

Does what `dpt export` does, without building engines. The exit status is 0 only if the verdict is PASSED.
"""

import sys
from pathlib import Path

from dpt_deploy import EngineOptions, ExportConfig, export_checkpoint
from dpt_deploy.cli import exit_on_error


def main(checkpoint: str, folder: str) -> int:
    config = ExportConfig(Path(checkpoint), Path(folder), engines=EngineOptions(builder="none"))
    bundle, report = export_checkpoint(config)  # writes the graphs, the reference, parity.json and report.html
    for stage in report.stages:
        depth = stage.heads.get("depth", {}).get("abs_rel")
        print(f"{stage.status:8} {stage.name}" + (f": depth AbsRel {depth:.1e}" if depth is not None else ""))
    print(report.verdict)
    print("files:", *(artifact.file for artifact in bundle.artifacts))
    return 0 if report.passed else 1


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/export_checkpoint.py CHECKPOINT BUNDLE")
    with exit_on_error():
        sys.exit(main(*sys.argv[1:]))
