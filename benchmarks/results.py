"""Where benchmarks write their results, and how they print them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dpt_deploy.core.files import write_json

RESULTS = Path(__file__).parent / "results"


class OutputOptions(Protocol):
    """The options that every benchmark has."""

    out: Path | None
    name: str
    json: bool


def result_file(options: OutputOptions, suffix: str = ".json") -> Path:
    """The result file of a run."""
    return (options.out or RESULTS) / f"{options.name}{suffix}"


def write_result(options: OutputOptions, result: dict[str, Any], show: Callable[[dict[str, Any]], None]) -> None:
    """Write the JSON file, and print either the result as JSON or `show(result)`."""
    path = result_file(options)
    write_json(path, result)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)
    log(f"written: {path}")


def log(line: str) -> None:
    """Progress goes to standard error: standard output is for the result."""
    print(line, file=sys.stderr, flush=True)
