"""Export a graph in a process of its own while the caller goes on.

torch.onnx is Python code on one core, and takes most of the time that the export of a small model takes.
`python -m dpt_deploy.export.graph_process` is that process: it reads what to export from a file, its standard input.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.contract import Contract, Graph
from ..core.errors import BuildError, DptError
from ..core.files import cannot_write, temporary_folder
from .graph import export_graph


@contextlib.contextmanager
def exporting(
    module: nn.Module, graph: Graph, contract: Contract, path: Path, opset: int, metadata: dict[str, str]
) -> Iterator[Callable[[], None]]:
    """Export a graph, as `graph.export_graph` does, while the block runs.

    Yields a function that waits for the file at `path`; it raises `BuildError` if the export failed. A block that ends
    without calling it stops the export and leaves no file.
    """
    with temporary_folder(path) as folder:
        try:
            process = _started((module, graph, contract, folder / path.name, opset, metadata), folder)
        except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as a RuntimeError
            raise cannot_write(path, error) from error

        def finish() -> None:
            printed, _ = process.communicate()
            if process.returncode:
                printed = printed.replace(str(folder / path.name), str(path))
                raise BuildError(_failure(path, process.returncode, printed))
            data = f"{path.name}.data"
            try:
                if (folder / data).exists():
                    os.replace(folder / data, path.with_name(data))
                else:
                    path.with_name(data).unlink(missing_ok=True)
                os.replace(folder / path.name, path)
            except OSError as error:
                raise cannot_write(path, error) from error

        try:
            yield finish
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


def _started(request: tuple[Any, ...], folder: Path) -> subprocess.Popen[str]:
    with tempfile.TemporaryFile(dir=folder) as file:
        torch.save(request, file)
        file.seek(0)
        return subprocess.Popen([sys.executable, "-m", __name__, str(os.getpid())], stdin=file,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _failure(path: Path, status: int, printed: str) -> str:
    last = (printed.strip().splitlines() or ["no output"])[-1]
    if last.startswith("error: "):
        return last.removeprefix("error: ")
    return (f"{path.name}: the process that exports it ended with status {status} ({last[:300]}). Status -9 usually "
            "means that memory ran out: free some, and run the export again.")


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, however it ended: nobody waits for the graph then."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    torch.set_num_threads(1)  # the other cores are the caller's
    try:
        # Only `exporting` can have written this file, which has no name.
        export_graph(*torch.load(sys.stdin.buffer, weights_only=False))
    except DptError as error:
        sys.exit(f"error: {error}")
