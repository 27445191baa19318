"""python -m dpt_deploy.export CHECKPOINT: export a bundle, build engines and judge them."""

from __future__ import annotations

from .. import cli

with cli.needing("export"):
    from ..build import benchmark_command
    from ..hub import push
    from ..report.terminal import print_outcome, skipped_images
    from .config import ExportConfig, check_options

PROG = "python -m dpt_deploy.export"


def main(config: ExportConfig) -> int:
    """Exit status: 0 if the verdict passed and every image was read, else 1."""
    check_options(config)
    with cli.needing("export"):
        from .pipeline import export_checkpoint
    bundle, report = export_checkpoint(config, command=cli.command_line(PROG))
    print_outcome(bundle, report, [benchmark_command(bundle, engine) for engine in bundle.find("engine")])
    skipped = skipped_images(bundle)
    if config.push is not None:
        if report.passed:
            print(f"pushed   {push(bundle, config.push)}")
        else:
            print(f"not pushed to {config.push}: the verdict failed")
    return 0 if report.passed and not skipped else 1


COMMAND = cli.Command(ExportConfig, main, PROG, renamed={
    "--fp32": "--fp32-modules", "--batch": "--batch-range", "--frame-size": "--frame-size-range",
    "--seed": "this option had no effect and was removed; omit it.",
})

if __name__ == "__main__":
    COMMAND.run()
