"""python -m dpt_deploy.serve BUNDLE: write a model repository for NVIDIA Triton."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from .. import cli
from ..core.bundle import Bundle
from ..core.compact import FORMS, Form, form
from ..core.errors import BadInput
from ..core.manifest import Precision

with cli.needing("cli"):
    import tyro

    from ..cli.options import Count, Json, Name, Names, Sizes
from ..report.terminal import plain_console
from . import ServeOptions, write_repository
from .config_pbtxt import Device
from .repository import Served

PROG = "python -m dpt_deploy.serve"


@dataclass(frozen=True)
class TritonConfig:
    """Write a model repository that NVIDIA Triton loads as it is.

    The server takes frames of any size as uint8 (N, H, W, 3) RGB and returns the maps that a request names. A TensorRT
    plan of the bundle is served by Triton's TensorRT backend, otherwise the ONNX graph by ONNX Runtime; --serve python
    runs this project's runtime inside the server.
    """

    bundle: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="BUNDLE")]
    """Bundle: the folder that the export command wrote."""
    out: Path = Path("model_repository")
    """Model repository. Other models in it stay as they are."""
    name: Name | None = None
    """The model's name. Default: the bundle's."""
    serve: Literal["auto", "tensorrt", "onnxruntime", "python"] = "auto"
    """What loads the model in the server."""
    precision: Precision | None = None
    """Precision of the plan or graph. Default: fp16 on a GPU, else fp32; never int8 or fp8."""
    compact: Names | None = None
    """More outputs, as HEAD=FORM,...: smaller forms of the maps, each with the error that docs/serving.md states, such
    as depth=uint16-mm,normals=octahedral,alpha=uint8. A request chooses."""
    max_batch: Count | None = None
    """The largest batch. Default: that of the plan's profile, else 8."""
    max_pixels: Count | None = None
    """Most pixels of all frames of a request. Default: those of the plan's profile, else 3840 times 2160."""
    sizes: Sizes = ((480, 640),)
    """Frame sizes of the warm-up requests: those that your clients send."""
    instances: Count = 1
    """Executions at the same time, on each device."""
    device: Device = "auto"
    """Where the model runs. auto: on every GPU of the server, else on the CPU."""
    backend: Name | None = None
    """With --serve python: the runtime's backend, such as openvino or onnxruntime-cpu. Default: the preferred one."""
    threads: Count | None = None
    """CPU threads per operator."""
    max_delay: float = 2.0
    """Longest time that a request waits for others to batch with [ms]."""
    queue: Count = 256
    """Requests that wait; one more is refused as unavailable."""
    version: Count = 1
    """Version number of the model. The server loads the largest one."""
    json: Json = False


def main(config: TritonConfig) -> None:
    """Write the repository, and print what the server needs."""
    if not 0 <= config.max_delay <= 10_000:
        raise BadInput(f"--max-delay: expected 0 to 10000 milliseconds, received {config.max_delay:g}.")
    options = ServeOptions(
        config.name, config.serve, config.precision, _forms(config.compact or ()), config.max_batch, config.max_pixels,
        config.sizes, config.instances, config.device, config.backend, config.threads, config.max_delay, config.queue,
        config.version,
    )
    served = write_repository(Bundle.open(config.bundle), config.out, options)
    if config.json:
        print(json.dumps(_record(served), indent=2))
        return
    console = plain_console(soft_wrap=True)
    console.print(f"{served.folder}: {served.artifact.file}, loaded by {served.config.served_by}, batches up to "
                  f"{served.config.max_batch}")
    for note in served.notes:
        console.print(f"note  {note}")
    console.print(f"Start it: tritonserver --model-repository={config.out.absolute()}")


def _record(served: Served) -> dict[str, Any]:
    config = served.config
    return {
        "folder": str(served.folder), "model": config.name, "file": served.artifact.file, "served_by": config.served_by,
        "max_batch": config.max_batch, "parameters": dict(config.parameters or {}), "notes": list(served.notes),
        "outputs": [{"name": one.output, "dtype": one.dtype, "bytes_per_pixel": one.bytes, "error": one.error}
                    for one in config.outputs],
    }


def _forms(pairs: tuple[str, ...]) -> tuple[Form, ...]:
    found = []
    for pair in pairs:
        head, equals, name = pair.partition("=")
        if not equals:
            known = "; ".join(f"{head}={'|'.join(names)}" for head, names in FORMS.items())
            raise BadInput(f"--compact: expected HEAD=FORM among {known}, received {pair!r}.")
        try:
            found.append(form(head, name))
        except BadInput as error:
            raise BadInput(f"--compact: {error}") from error
    return tuple(found)


COMMAND = cli.Command(TritonConfig, main, PROG)

if __name__ == "__main__":
    COMMAND.run()
