"""python -m dpt_deploy.doctor [BUNDLE]: diagnose this machine and a bundle."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from .. import cli

with cli.needing("cli"):
    import tyro

    from ..cli.options import Json
    from ..core.bundle import Bundle
    from . import Check
    from .bundle import check_bundle
    from .hardware import check_machine

PROG = "python -m dpt_deploy.doctor"
COLOURS = {"ok": "green", "warning": "yellow", "failed": "red", "not installed": "dim", "not checked": "cyan"}


@dataclass(frozen=True)
class DoctorConfig:
    """Check this machine, and whether each file of a bundle is intact and compatible with it."""

    bundle: tyro.conf.Positional[Path | None] = None
    """Bundle: the folder that the export command wrote. Default: check only the machine."""
    json: Json = False


def main(config: DoctorConfig) -> int:
    """Exit status 1 if a check failed, else 0. Missing optional packages and unchecked items do not count."""
    bundle = Bundle.open(config.bundle) if config.bundle else None
    found = {"machine": check_machine(config.bundle or Path.cwd()), "bundle": check_bundle(bundle) if bundle else []}
    failed = [check for checks in found.values() for check in checks if check.status == "failed"]
    if config.json:
        plain = {part: [dataclasses.asdict(check) for check in checks] for part, checks in found.items()}
        print(json.dumps({"passed": not failed, **plain}, indent=2))
    else:
        _print("This machine", found["machine"])
        if bundle:
            _print(f"Bundle {bundle.folder}", found["bundle"])
        print(_summary(failed, [check for checks in found.values() for check in checks if check.status == "warning"]))
    return 1 if failed else 0


def _summary(failed: list[Check], warnings: list[Check]) -> str:
    text = f"FAILED: {len(failed)}, first {failed[0].subject}" if failed else "No check failed"
    if warnings:
        text += f"; {len(warnings)} warnings: " if len(warnings) > 1 else "; 1 warning: "
        text += ", ".join(dict.fromkeys(check.subject for check in warnings))
    return text + "."


def _print(title: str, checks: list[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from ..report.terminal import plain_console

    console = plain_console()
    console.print(title, style="italic", soft_wrap=True)
    table = Table("", "status", "found")
    for check in checks:
        table.add_row(Text(check.subject), Text(check.status, COLOURS[check.status]), Text(check.finding))
    console.print(table)
    for check in checks:
        if check.remedy:
            console.print(f"{check.subject}: {check.remedy}", soft_wrap=True)


COMMAND = cli.Command(DoctorConfig, main, PROG)

if __name__ == "__main__":
    COMMAND.run()
