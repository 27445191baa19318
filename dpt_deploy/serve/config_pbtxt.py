"""The text of Triton's `config.pbtxt` for a frame graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ..core.compact import Form

ServedBy = Literal["tensorrt", "onnxruntime", "python"]
Device = Literal["auto", "cpu", "gpu"]

TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "uint16": "TYPE_UINT16", "int16": "TYPE_INT16",
         "int8": "TYPE_INT8", "uint8": "TYPE_UINT8"}
LOADERS = {"tensorrt": 'platform: "tensorrt_plan"', "onnxruntime": 'backend: "onnxruntime"',
           "python": 'backend: "python"'}


@dataclass(frozen=True)
class ModelConfig:
    """What `config.pbtxt` says about a model. The input is `frame`, uint8 (N, H, W, 3) RGB."""

    name: str
    served_by: ServedBy
    outputs: tuple[Form, ...]
    """The maps and their forms, in the order of the graph's outputs."""
    max_batch: int
    """The largest batch of a request, and of the batches that the server makes of requests."""
    warm_up: tuple[tuple[int, int, int], ...] = ()
    """Batches of frames that run before the model is ready: (batch, height, width)."""
    instances: int = 1
    """Executions at the same time, on each device."""
    device: Device = "auto"
    delay: float = 2.0
    """Longest wait for more requests to batch [ms]."""
    queue: int = 256
    """Waiting requests; one more is refused as unavailable."""
    parameters: Mapping[str, str] | None = None
    """Read by the client, and by the backend."""

    def text(self) -> str:
        """The file's content, in protobuf's text format."""
        outputs = ",\n".join(_tensor(one.output, one.dtype, [-1, -1, *([one.channels] if one.channels > 1 else [])])
                             for one in self.outputs)
        parts = [
            "# Written by dpt triton. The graph resizes frames and maps by itself: it needs no ensemble.",
            f"name: {quoted(self.name)}",
            LOADERS[self.served_by],
            f"max_batch_size: {self.max_batch}",
            f"input [\n{_tensor('frame', 'uint8', [-1, -1, 3])}\n]",
            f"output [\n{outputs}\n]",
            "version_policy { latest { num_versions: 1 } }",
            f"instance_group [ {{ count: {self.instances} kind: KIND_{self.device.upper()} }} ]",
            self._batching(),
            "response_cache { enable: false }",
            *(_warm_up(*shape) for shape in self.warm_up),
            *(_parameter(key, value) for key, value in (self.parameters or {}).items()),
        ]
        return "\n".join(parts) + "\n"

    def _batching(self) -> str:
        # Kernels and memory are chosen by shape, so a few batch sizes serve better than all of them.
        sizes = sorted({size for size in (2, 4, 8, 16, 32) if size < self.max_batch} | {self.max_batch})
        return "\n".join([
            "dynamic_batching {",
            f"  preferred_batch_size: [ {', '.join(map(str, sizes))} ]",
            f"  max_queue_delay_microseconds: {round(self.delay * 1000)}",
            f"  default_queue_policy {{ max_queue_size: {self.queue} }}",
            "}",
        ])


def quoted(text: str) -> str:
    """A string of protobuf's text format, with escapes for everything but plain ASCII."""
    plain = (chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\{byte:03o}" for byte in text.encode())
    return f'"{"".join(plain)}"'


def _tensor(name: str, dtype: str, shape: list[int]) -> str:
    return f"  {{ name: {quoted(name)} data_type: {TYPES[dtype]} dims: [ {', '.join(map(str, shape))} ] }}"


def _warm_up(batch: int, height: int, width: int) -> str:
    return "\n".join([
        "model_warmup {",
        f"  name: {quoted(f'{batch}x{height}x{width}')}",
        f"  batch_size: {batch}",
        f'  inputs {{ key: "frame" value {{ data_type: TYPE_UINT8 dims: [ {height}, {width}, 3 ] '
        "random_data: true } }",
        "}",
    ])


def _parameter(key: str, value: str) -> str:
    return f"parameters {{ key: {quoted(key)} value {{ string_value: {quoted(value)} }} }}"
