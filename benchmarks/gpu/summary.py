"""summary.md: what ran, what did not and why, the figures, and the goals beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.timing import speedup_text

from .catalogue import STEPS
from .goals import failures

REHEARSAL = "**Rehearsal on the CPU with tiny sizes. No figure here is a measurement.**"


def summary(result: dict[str, Any]) -> str:
    """The result as Markdown that reads well as text."""
    steps = result["steps"]
    machine, gpu = result["machine"], (result["machine"].get("gpu") or {})
    versions = machine["versions"]
    parts = ["# GPU validation", ""]
    if result.get("dry_run"):
        parts += [REHEARSAL, ""]
    parts += [f"{gpu.get('name', 'no GPU')}, driver {gpu.get('driver_version', 'none')}; "
              f"torch {versions.get('torch', 'not installed')}; commit {machine['commit']}; {machine['date']}", ""]
    devices = sorted({step["device"] for step in steps.values() if step.get("device")})
    if len(devices) > 1:
        parts += [f"**The steps ran on different GPUs: {', '.join(devices)}. Compare figures within a step only.**", ""]
    parts += _table(("step", "status", "s", "result"), [
        (step.name, (found := steps[step.name])["status"], f"{found.get('seconds', 0):.0f}", _one_line(found))
        for step in STEPS if step.name in steps])
    parts += ["", "## Goals", "", *_table(("goal", "bound", "value", "outcome"), map(_goal, result["goals"]))]
    for step in STEPS:
        found = steps.get(step.name, {})
        details = [line for show in (_rates, _variants, _training, _kinds) for line in show(found)]
        if details:
            parts += ["", f"## {step.name}", "", step.about + ".", "", *details]
        parts += [f"- {doubt}" for doubt in found.get("doubts", [])]
    return "\n".join(parts) + "\n"


def _one_line(step: dict[str, Any]) -> str:
    """The reason, the verdict, or what exceeds a budget."""
    if step["status"] != "ran":
        return step.get("reason", "")
    if failed := failures(step):
        return "parity failed: " + "; ".join(failed)
    rows = [row for row in step.get("rows", []) if row.get("status") == "not run"]
    missing = "; ".join(f"not run: {row['name']} ({row['reason']})" for row in rows)
    return step.get("verdict") or missing or ", ".join(step.get("engines", []))


def _goal(one: dict[str, Any]) -> tuple[str, ...]:
    value = "not measured" if one["value"] is None else f"{one['value']:.2f} ({one['of']})"
    return one["goal"], str(one["bound"]), value, {None: "open", True: "met", False: "not met"}[one["met"]]


def _rates(step: dict[str, Any]) -> list[str]:
    """The rates of the hardware."""
    if "matrix_flops_per_s" not in step or "copy_bytes_per_s" not in step:
        return []
    rates = ", ".join(f"{name} {rate / 1e12:.1f}" for name, rate in step["matrix_flops_per_s"].items())
    return [f"Matrix rates [TFLOP/s]: {rates}. Copy {step['copy_bytes_per_s'] / 1e9:.0f} GB/s. "
            f"One launch {step['launch_us']:.1f} us."]


def _variants(step: dict[str, Any]) -> list[str]:
    """Variants of the network with their expectations."""
    rows = [row for row in step.get("rows", []) if "p50_ms" in row and "images_per_s" in row]
    ceiling = step.get("fp16_matrix_flops_per_s")
    cells = []
    for row in rows:
        expected = row.get("expected")
        share = f"{row['flops_per_s'] / ceiling:.0%}" if ceiling and "flops_per_s" in row else ""
        cells.append((row["name"], f"{row['p50_ms']:.3f}", f"{row['images_per_s']:.1f}", share,
                      speedup_text(row["times_faster"]) if "times_faster" in row else "",
                      "{:g} to {:g}".format(*expected["times_faster"]) if expected else "",
                      expected["outcome"] if expected else "", row.get("parity", {}).get("status", "not judged")))
    return _table(("row", "p50 ms", "images/s", "of the FP16 matrix rate", "times faster", "expected", "outcome",
                   "parity"), cells) if cells else []


def _training(step: dict[str, Any]) -> list[str]:
    rows = [row for row in step.get("rows", []) if "ms_per_step" in row]
    lines = [f"{row['images_per_s']:.1f} images/s, {row['ms_per_step']:.1f} ms per step, "
             f"{row['share_of_matrix_rate']:.0%} of the matrix rate, peak "
             + ("not measured" if row["peak_gib"] is None else f"{row['peak_gib']:.2f} GiB") for row in rows]
    for row in step.get("switches", []):
        lines.append(f"- {row['name']}: " + (f"not run ({row['reason']})" if row["status"] != "ran" else
                     f"{speedup_text(row['times_faster'])} times faster, expected "
                     f"{row['expected']['times_faster'][0]:g} to {row['expected']['times_faster'][1]:g}: "
                     f"{row['expected']['outcome']}"))
    return lines


def _kinds(step: dict[str, Any]) -> list[str]:
    """Shares of the time by kind of operator, and the longest kernels."""
    if "kinds" not in step:
        return []
    kinds = [(one["kind"], f"{one['share']:.1%}", f"{one['us']:.0f}",
              f"{one['flops_per_s'] / 1e12:.1f}" if "flops_per_s" in one else "") for one in step["kinds"]]
    kernels = [(one["name"][:80], f"{one['share']:.1%}", f"{one['us']:.0f}") for one in step["kernels"][:10]]
    return [f"{step['wall_ms']:.3f} ms per call; the GPU is busy for {step['gpu_busy_share']:.0%} of it, with "
            f"{step['launches']} kernels.", "", *_table(("kind", "share", "us", "TFLOP/s"), kinds),
            *(["", *_table(("kernel", "share", "us"), kernels)] if kernels else [])]


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """A Markdown table whose columns line up."""
    cells = [head, *[tuple(str(cell).replace("|", "/").replace("\n", " ") for cell in row) for row in rows]]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    line: Callable[[Iterable[str]], str] = lambda row: "| " + " | ".join(  # noqa: E731
        cell.ljust(width) for cell, width in zip(row, widths[:-1], strict=False)) + f" | {[*row][-1]} |"
    return [line(cells[0]), "|" + "|".join("-" * (width + 2) for width in widths[:-1]) + "|---|", *map(line, cells[1:])]
