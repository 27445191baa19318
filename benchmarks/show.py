"""Results as a table in the terminal and as a plot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dpt_deploy.core.files import replacing

GPU_COLUMNS = ("up ms", "engine", "down")


def table(result: dict[str, Any]) -> None:
    """Print the rows of `latency.measure`, what was not run below them, and why nothing may be stable."""
    console = Console(highlight=False)
    console.width = max(console.width, 165)
    h, w = result["frame"]
    on_gpu = any("d2h" in row.get("parts_ms", {}) for row in result["rows"])
    shown = Table(title=f"{result['bundle']}: {w} x {h}, batch {result['batch']}, {result['rounds']} rounds",
                  title_justify="left")
    for column in ("contender", "p50 ms", "p90", "p99", "frames/s", "x peer", "ceiling", "pre+post", "load s",
                   "first s", "host MB", "AbsRel", "parity", "stable", *GPU_COLUMNS[:3 * on_gpu]):
        left = column in ("contender", "parity", "stable")
        shown.add_column(column, justify="left" if left else "right", no_wrap=column in ("contender", "x peer"))
    for row in result["rows"]:
        if row["status"] == "ran":
            shown.add_row(*_cells(row, result["doubts"])[: len(shown.columns)])
    console.print(shown)
    for row in result["rows"]:
        if row["status"] != "ran":
            console.print(f"not run  {row['name']}: {row['reason']}", markup=False)
    for doubt in result["doubts"]:
        console.print(f"nothing here is stable: {doubt}", markup=False)


def _cells(row: dict[str, Any], doubts: list[str]) -> list[str]:
    parity, parts = row.get("parity"), row["parts_ms"]
    around = (parts["pre"] + parts["post"]) / row["p50_ms"] if {"pre", "post"} <= set(parts) else None
    abs_rel = parity and parity["heads"].get("depth", {}).get("abs_rel")
    return [
        row["name"], f"{row['p50_ms']:.1f}", f"{row['p90_ms']:.1f}", f"{row['p99_ms']:.1f}",
        f"{row['frames_per_s']:.2f}",
        times(row["times_faster_than_peer"]) if "times_faster_than_peer" in row else "",
        f"{row['share_of_ceiling']:.0%}" if "share_of_ceiling" in row else "",
        "" if around is None else f"{around:.1%}",
        f"{row['load_s']:.1f}", f"{row['first_call_s']:.2f}", f"{row['host_memory_mb']:.0f}",
        f"{abs_rel:.1e}" if abs_rel is not None else "", f"{parity['status']} ({parity['budget']})" if parity else "",
        "yes" if row["stable"] and not doubts else "no",
        *(f"{parts[name]:.2f}" if name in parts else "" for name in ("h2d", "engine", "d2h")),
    ]


def times(ratio: dict[str, Any]) -> str:
    """A ratio of `measure.ratios` as text, with the 95 % confidence interval of its median where there is one."""
    low, high = ratio["interval"] or (None, None)
    return f"{ratio['median']:.2f}" + ("" if low is None else f" ({low:.2f} to {high:.2f})")


def plot(result: dict[str, Any], path: Path) -> None:
    """The median of every contender as bars, as PNG, atomically; nothing without matplotlib."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = sorted((row for row in result["rows"] if row["status"] == "ran"), key=lambda row: -row["p50_ms"])
    figure, axes = pyplot.subplots(figsize=(11, 1.2 + 0.45 * len(rows)), layout="constrained")
    colours = ["#c0504d" if row["peer"] else "#4f81bd" for row in rows]
    bars = axes.barh([row["name"] for row in rows], [row["p50_ms"] for row in rows], color=colours)
    for bar, row in zip(bars, rows, strict=True):
        parity = row.get("parity", {}).get("status", "not judged")
        faster = f", {times(row['times_faster_than_peer'])} x peer" if "times_faster_than_peer" in row else ""
        axes.text(bar.get_width(), bar.get_y() + bar.get_height() / 2,
                  f" {row['p50_ms']:.0f} ms{faster}; parity {parity}", va="center", fontsize=8)
    h, w = result["frame"]
    axes.set(xlabel=f"ms from a {w} x {h} frame to full-size maps, median of {result['rounds']}",
             title=f"{result['bundle']} on {result['machine']['processor']['cores']} cores"
             if not result["machine"]["gpu"] else f"{result['bundle']} on {result['machine']['gpu']['name']}")
    axes.set_xlim(0, 1.9 * max((row["p50_ms"] for row in rows), default=1.0))  # room for what stands beside the bars
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
