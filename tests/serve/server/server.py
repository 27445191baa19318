"""A real tritonserver, from the wheel of nvidia-pytriton, on free ports of the loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

ROOT = Path(__file__).resolve().parents[3]
SHARED = Path("/dev/shm")
READY = 90.0
"""Longest time until the server is ready [s]. It hangs if a stub dies at start, so there must be a limit."""


class Server:
    """A server process. Leaves nothing behind."""

    def __init__(self, repository: Path, models: list[str], folder: Path = ROOT, ports: tuple[int, ...] = ()) -> None:
        """Prepare a server.

        Args:
            repository: The model repository.
            models: The models to load at start.
            folder: Where it starts. The Python backend looks for packages there first.
            ports: HTTP, gRPC and metrics; free ones by default.
        """
        self.repository, self.models, self.folder = repository, models, folder
        self.http_port, self.grpc_port, self.metrics_port = ports or free_ports(3)
        self.process: subprocess.Popen | None = None
        self._own = Path(tempfile.mkdtemp(prefix="dpt-server-"))
        self.log = self._own / "log"
        self._regions = f"{self._own.name}-"  # how the names of its regions in /dev/shm begin

    @property
    def ports(self) -> tuple[int, ...]:
        return self.http_port, self.grpc_port, self.metrics_port

    def address(self, kind: str) -> str:
        """The address for `Client`, by "grpc" or "http"."""
        return f"{kind}://127.0.0.1:{self.grpc_port if kind == 'grpc' else self.http_port}"

    def start(self) -> Self:
        """Start it, and wait until it is ready; raises with its log if it does not get so far."""
        packages = Path(sysconfig.get_path("purelib"))
        pytriton = packages / "pytriton" / "tritonserver"
        backend = self._own / "backends" / "python"
        if not backend.exists():
            backend.mkdir(parents=True)
            stub = f"{sys.version_info.major}.{sys.version_info.minor}"
            for file in (*(pytriton / "backends" / "python").iterdir(),
                         pytriton / "python_backend_stubs" / stub / "triton_python_backend_stub"):
                (backend / file.name).symlink_to(file)
        libraries = [packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR")]
        # The stub finds its packages by the python3 on PATH, and takes no PYTHONPATH.
        environment = os.environ | {"LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)), "DPT_MEASURE": "0",
                                    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        command = [pytriton / "bin" / "tritonserver", f"--model-repository={self.repository}",
                   f"--backend-directory={backend.parent}", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1",
                   f"--http-port={self.http_port}", f"--grpc-port={self.grpc_port}",
                   f"--metrics-port={self.metrics_port}", "--metrics-address=127.0.0.1", "--exit-timeout-secs=10",
                   f"--backend-config=python,shm-region-prefix-name={self._regions}",
                   "--model-control-mode=explicit", *(f"--load-model={name}" for name in self.models)]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(list(map(str, command)), cwd=self.folder, env=environment, stdout=log,
                                            stderr=log, start_new_session=True)
        limit = time.monotonic() + READY
        while not self._ready():
            if self.process.poll() is not None or time.monotonic() > limit:
                self.stop(signal.SIGKILL)
                raise RuntimeError(f"the server was not ready:\n{self.text()[-6000:]}")
            time.sleep(0.1)
        return self

    def _ready(self) -> bool:
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}/v2/health/ready", timeout=2).status == 200
        except (urllib.error.URLError, OSError):
            return False

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End the server and its stubs."""
        if self.process is None:
            return
        group = self.process.pid
        if how == signal.SIGTERM:
            self.process.send_signal(how)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                how = signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)  # and stubs that outlived it
        self.process.wait()
        self.process = None
        for region in SHARED.glob(f"{self._regions}*"):  # a server that is killed leaves them
            region.unlink(missing_ok=True)

    def text(self) -> str:
        """What it logged."""
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def memory(self) -> dict[str, int]:
        """Resident memory of the server, and of its stubs together [bytes]."""
        found = {"server": 0, "stubs": 0}
        for status in Path("/proc").glob("[0-9]*/status"):
            try:
                pid = int(status.parent.name)
                if os.getsid(pid) != self.process.pid:
                    continue
                pages = int((status.parent / "statm").read_text().split()[1])
            except (OSError, ValueError):
                continue
            found["server" if pid == self.process.pid else "stubs"] += pages * os.sysconf("SC_PAGE_SIZE")
        return found

    def metrics(self) -> str:
        """Its Prometheus metrics."""
        return urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10).read().decode()

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop it, and remove its files."""
        self.stop()
        shutil.rmtree(self._own, ignore_errors=True)


def free_ports(count: int) -> tuple[int, ...]:
    """Ports of the loopback that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return tuple(one.getsockname()[1] for one in sockets)
    finally:
        for one in sockets:
            one.close()
