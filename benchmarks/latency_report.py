"""The results of the latency benchmark as a table in the terminal and as a bar chart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks.timing import speedup_text
from dpt_deploy.core.files import replacing
from dpt_deploy.report.terminal import plain_console

LEFT_ALIGNED = ("contender", "parity", "stable")
COLUMNS = ("contender", "p50 ms", "p90", "p99", "frames/s", "x peer", "ceiling", "pre+post", "load s", "first s",
           "host MB", "AbsRel", "parity", "stable")
GPU_COLUMNS = ("h2d ms", "engine", "d2h")


def show(result: dict[str, Any]) -> None:
    """Print a row for each contender that ran, the others with their reasons, and doubts about the whole run."""
    console = plain_console()
    console.width = max(console.width, 165)
    h, w = result["frame"]
    ran = [row for row in result["rows"] if row["status"] == "ran"]
    on_gpu = any("d2h" in row["parts_ms"] for row in ran)
    table = Table(title=f"{result['bundle']}: {h}x{w}, batch {result['batch']}, {result['rounds']} rounds",
                  title_justify="left")
    for column in COLUMNS + (GPU_COLUMNS if on_gpu else ()):
        table.add_column(column, justify="left" if column in LEFT_ALIGNED else "right",
                         no_wrap=column in ("contender", "x peer"))
    for row in ran:
        table.add_row(*_cells(row, result["doubts"])[: len(table.columns)])
    console.print(table)
    for row in result["rows"]:
        if row["status"] != "ran":
            console.print(f"not run  {row['name']}: {row['reason']}")
    for doubt in result["doubts"]:
        console.print(f"nothing here is stable: {doubt}")


def _cells(row: dict[str, Any], doubts: list[str]) -> list[str]:
    parity, steps = row.get("parity"), row["parts_ms"]
    around = (steps["pre"] + steps["post"]) / row["p50_ms"] if {"pre", "post"} <= set(steps) else None
    abs_rel = parity and parity["heads"].get("depth", {}).get("abs_rel")
    return [
        row["name"], f"{row['p50_ms']:.1f}", f"{row['p90_ms']:.1f}", f"{row['p99_ms']:.1f}",
        f"{row['frames_per_s']:.2f}",
        speedup_text(row["times_faster_than_peer"]) if "times_faster_than_peer" in row else "",
        f"{row['share_of_ceiling']:.0%}" if "share_of_ceiling" in row else "",
        "" if around is None else f"{around:.1%}",
        f"{row['load_s']:.1f}", f"{row['first_call_s']:.2f}", f"{row['host_memory_mb']:.0f}",
        f"{abs_rel:.1e}" if abs_rel is not None else "", f"{parity['status']} ({parity['budget']})" if parity else "",
        "yes" if row["stable"] and not doubts else "no",
        *(f"{steps[name]:.2f}" if name in steps else "" for name in ("h2d", "engine", "d2h")),
    ]


def plot(result: dict[str, Any], path: Path) -> None:
    """Write the median of every contender as a bar chart (PNG); nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    rows = sorted((row for row in result["rows"] if row["status"] == "ran"), key=lambda row: -row["p50_ms"])
    figure = Figure(figsize=(11, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    colours = ["#c0504d" if row["peer"] else "#4f81bd" for row in rows]
    bars = axes.barh([row["name"] for row in rows], [row["p50_ms"] for row in rows], color=colours)
    for bar, row in zip(bars, rows, strict=True):
        faster = f", {speedup_text(row['times_faster_than_peer'])} x peer" if "times_faster_than_peer" in row else ""
        parity = row.get("parity", {}).get("status", "not judged")
        axes.text(bar.get_width(), bar.get_y() + bar.get_height() / 2,
                  f" {row['p50_ms']:.0f} ms{faster}; parity {parity}", va="center", fontsize=8)
    h, w = result["frame"]
    processor, gpu = result["machine"]["processor"], result["machine"]["gpu"]
    axes.set(xlabel=f"ms from a {h}x{w} frame to full-size maps, median of {result['rounds']} calls",
             title=f"{result['bundle']} on {gpu['name'] if gpu else str(processor['cores']) + ' cores'}")
    axes.set_xlim(0, 1.9 * max((row["p50_ms"] for row in rows), default=1.0))  # leaves room for the labels
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
