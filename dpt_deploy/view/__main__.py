"""python -m dpt_deploy.view BUNDLE: a local page that shows what the bundle predicts."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from .. import cli
from ..core.errors import BadInput
from ..runtime import Precision, Runtime, load

with cli.needing("view"):
    import tyro
    import uvicorn
    from tyro.constructors import PrimitiveConstructorSpec

    from ..cli.options import Count, Name, Names, Verbose
    from ..report.terminal import plain_console
    from .app import Page
from .models import Models

PROG = "python -m dpt_deploy.view"
PORT = 8321
MAX_PIXELS = 50_000_000
MOST_CONNECTIONS = 64
PATIENCE = 1
"""How long the end waits for answers and computations [s]."""
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def _port(text: str) -> int | Literal["auto"]:
    if text == "auto":
        return "auto"
    if not (text.isascii() and text.isdecimal()) or int(text) > 65535:
        raise ValueError(f"expected auto or a number from 0 to 65535, received {text!r}")
    return int(text)


Port = Annotated[int | Literal["auto"], PrimitiveConstructorSpec(
    nargs=1, metavar="N|auto", instance_from_str=lambda arguments: _port(arguments[0]),
    is_instance=lambda value: value is not None, str_from_instance=lambda value: [str(value)],
)]


@dataclass(frozen=True)
class ViewConfig:
    """Open a page in the browser that shows depth, normals, cut-out and a 3-D point cloud of an image or the camera.

    The page is served by this machine to itself. Images stay in memory: nothing is written, and nothing is sent
    elsewhere. Ctrl-C ends it.
    """

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Bundle: the folder that the export command wrote."""
    backend: Name | None = None
    """Backend, such as tensorrt, openvino or onnxruntime-cpu. Default: the first one that can run here."""
    precision: Precision | None = None
    """Precision of the graph. Default: the one that the backend prefers, never int8 or fp8."""
    threads: Count | None = None
    """CPU threads per operator."""
    compare: Path | None = None
    """A second bundle, which the page compares with the first by a wipe and in numbers."""
    compare_precision: Precision | None = None
    """Precision of the second model. Without --compare, the second model is the same bundle in this precision."""
    host: str = "127.0.0.1"
    """Address to listen on. With 0.0.0.0, everyone in the network can use the page."""
    port: Port = "auto"
    """Port to listen on; 0 is any free one. auto: 8321, or any free one if that is taken."""
    allow_host: Names = ()
    """Names by which the page may be called besides its address and localhost, separated by commas."""
    browser: bool = True
    """Open the page in the browser."""
    max_pixels: Count = MAX_PIXELS
    """Refuse images with more pixels than this."""
    max_megabytes: Count = 64
    """Refuse files with more megabytes than this."""
    verbose: Verbose = False


def main(config: ViewConfig) -> int:
    """Serve the page until a signal ends it. Exit status: 128 and the number of the signal, as in a shell."""
    console = plain_console(soft_wrap=True)
    listening = listen(config.host, config.port)  # fails before an engine is loaded
    with listening, contextlib.ExitStack() as opened:
        models = Models(open_models(config), config.max_pixels)
        opened.callback(models.close)
        for runtime in models.runtimes:
            console.print(runtime.reason if config.verbose else runtime.summary)
        url = address(config.host, listening.getsockname()[1])
        console.print(f"The page is at {url}  (Ctrl-C ends it)")
        if config.host not in LOOPBACK:
            console.print("Everyone who reaches this machine at that port can use the page. Browsers open the "
                          "camera only on this machine itself, or over HTTPS.")
        names = frozenset(name.lower() for name in (*config.allow_host, config.host))
        page = Page(models, config.max_megabytes * 1_000_000, names)
        if config.browser and config.host in LOOPBACK and has_display():
            threading.Timer(0.5, webbrowser.open, [url]).start()
        status = serve(page, listening)
        opened.pop_all()
        console.print("The page has ended.")
        end(models, status)
        return status


def open_models(config: ViewConfig) -> list[Runtime]:
    """The runtime of the bundle and, if there is something to compare with, a second one."""
    first = load(config.bundle, config.backend, precision=config.precision, threads=config.threads)
    if config.compare is None and config.compare_precision is None:
        return [first]
    try:
        second = load(config.compare or config.bundle, config.backend, precision=config.compare_precision,
                      threads=config.threads)
    except BaseException:
        first.close()
        raise
    if config.compare is None and second.artifact.file == first.artifact.file and second.backend == first.backend:
        first.close(), second.close()
        raise BadInput(f"--compare-precision {config.compare_precision}: expected another precision than the first "
                       f"model's, which is the same. Choose another one, or set the first with --precision.")
    return [first, second]


def listen(host: str, port: int | Literal["auto"]) -> socket.socket:
    """A listening socket. Raises `BadInput` if the address is not of this machine, or the port is taken."""
    tried = (PORT, 0) if port == "auto" else (port,)
    for number in tried:
        try:
            family, *_, where = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
            return socket.create_server(where, family=family)
        except OSError as error:
            if number == tried[-1]:
                raise BadInput(f"cannot listen on {host}, port {number}: {error.strerror or error}. Choose another "
                               "--port, such as 0 for any free one, or another --host.") from error
    raise AssertionError("unreachable")


def address(host: str, port: int) -> str:
    """The page's address in a browser on this machine."""
    name = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{name}:{port}/"


def has_display() -> bool:
    """Whether a browser can open a window; without one, a text browser would take over the terminal."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


class Server(uvicorn.Server):
    """A server that asks the page to let go of its requests before it waits for them."""

    def __init__(self, page: Page) -> None:
        super().__init__(uvicorn.Config(
            page.app, log_level="warning", access_log=False, lifespan="off", ws="none", http="h11", server_header=False,
            timeout_graceful_shutdown=PATIENCE, limit_concurrency=MOST_CONNECTIONS,
        ))
        self.page = page

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the requests, then the connections."""
        self.page.stop()
        logging.getLogger("uvicorn.error").disabled = True  # it would report each client that does not read its answer
        await super().shutdown(sockets)


def end(models: Models, status: int) -> None:
    """Release the models; leave the process at once, with this exit status, if a request still computes.

    No backend can be interrupted in a computation, and Python waits for the thread that it runs in.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # it ends already
    until = time.monotonic() + PATIENCE
    released = models.close(PATIENCE)
    threads = [one for one in threading.enumerate() if one is not threading.current_thread() and not one.daemon]
    for thread in threads:
        thread.join(max(0, until - time.monotonic()))
    if not released or any(thread.is_alive() for thread in threads):
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


def serve(page: Page, listening: socket.socket) -> int:
    """Serve until SIGINT or SIGTERM; answers that are being sent have a second. Returns 128 + the signal."""
    caught: list[int] = []
    previous = {number: signal.signal(number, lambda number, _frame: caught.append(number))
                for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        Server(page).run([listening])  # it takes the signals, and raises them again at its end
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 128 + caught[0] if caught else 0


COMMAND = cli.Command(ViewConfig, main, PROG)

if __name__ == "__main__":
    COMMAND.run()
