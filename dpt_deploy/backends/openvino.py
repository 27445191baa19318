"""ONNX graphs in OpenVINO on the CPU, in FP32, BF16, FP16 or INT8.

OpenVINO treats the precision as a hint and silently computes in another type if the processor lacks it. This module
always sets the hint, and only to a type that the processor supports. The resizes stay in FP32, because BF16 and FP16
cannot represent all pixel positions above 256 and 2048. In reduced precision, a frame graph is therefore split into
three parts: resize, network, resize. In INT8, the types stand in the graph: what is not quantized stays in FP32.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.bundle import Bundle
from ..core.contract import Graph
from ..core.errors import BackendError, Cause, ContractError, MissingPackage, missing_package
from ..core.install import install_command
from ..core.manifest import EIGHT_BITS, Artifact, Precision, PrecisionPlan
from .base import Backend, Check, Refusal, SessionOptions, StageTask
from .eight_bits import session_note, weights_only
from .openvino_graph import prefer_convolution_kernel
from .session import Session, host_array, reject_stream

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}
"""By what it computes in. For an INT8 graph, the type of everything that is not quantized."""
NO_FP8 = "OpenVINO has no FP8 kernels on a CPU; it would round to FP8 and compute in FP32"
FP16_NOTE = "a second opinion on accuracy; FP16 overflow may give finite values in OpenVINO"
CAPABILITIES = {"BF16": "bf16", "FP16": "fp16"}  # OpenVINO's names of the reduced precisions
MATRIX_LAYERS = ("Convolution", "FullyConnected", "MatMul", "Deconvolution")


class OpenVINO(Backend):
    """OpenVINO on the CPU."""

    name = "openvino"
    title = "OpenVINO"
    package = "openvino"
    extra = "cpu"
    runs = "ONNX graphs on a CPU, in FP32 or INT8, or in BF16 or FP16 if it has the units"

    def unavailable(self) -> Refusal | None:
        try:
            shared_core()
        except MissingPackage as error:
            return Refusal(Cause.NOT_INSTALLED, str(error))
        return None

    def candidates(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> list[Artifact]:
        """As in the base class. BF16 uses the FP32 graph if there is no BF16 graph.

        Default: FP32, preceded by FP16 if the bundle's parity report passed the FP16 graph on OpenVINO.
        """
        if precision == "fp8":
            return []
        by_precision = {artifact.precision: artifact for artifact in bundle.find("onnx", graph=graph)}
        order: list[str] = [precision] if precision else ["fp16", "fp32"]
        no_bf16 = precision == "bf16" and "bf16" not in by_precision
        if no_bf16 or (precision is None and not self._has_passed(bundle, by_precision.get("fp16"))):
            order = ["fp32"]
        return [by_precision[name] for name in order if name in by_precision]

    def no_candidate(self, bundle: Bundle, graph: Graph, precision: Precision | None) -> Refusal:
        if precision == "fp8":
            return Refusal(Cause.UNSUPPORTED, NO_FP8, "use precision int8, or an FP8 engine on a GPU")
        return super().no_candidate(bundle, graph, precision)

    def _has_passed(self, bundle: Bundle, artifact: Artifact | None) -> bool:
        """Whether the bundle's parity report passed this file on OpenVINO."""
        report = bundle.last_report() if artifact is not None else None
        if report is None:
            return False
        wanted = self.stage_id(artifact)
        return any(stage.id == wanted and stage.passed and stage.sha256 == artifact.sha256 for stage in report.stages)

    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        return OpenVINOSession(bundle, artifact, options.precision, options.threads)

    def stages(self, bundle: Bundle) -> list[StageTask]:
        if self.unavailable() is not None:  # optional, so its absence is not reported
            return []
        # Finite values for an adversarial input prove nothing where an overflow may stay finite.
        return [dataclasses.replace(task, notes=(FP16_NOTE,), images_only=True) if task.id.precision == "fp16" else task
                for task in super().stages(bundle)]

    def diagnose(self) -> list[Check]:
        if self.unavailable() is not None:
            return [Check(self.title, "not installed", "optional: fast inference on CPUs", install_command("cpu"))]
        import openvino

        capabilities = shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        able = sorted(name for name in capabilities if name in ("FP32", "FP16", "BF16"))
        return [Check(self.title, "ok", f"{openvino.__version__.split('-')[0]}, devices "
                      f"{', '.join(shared_core().available_devices)}, this CPU supports {', '.join(able)}")]


class OpenVINOSession(Session):
    """An ONNX graph of a bundle on the CPU. Thread-safe: concurrent calls are serialised.

    Takes NumPy arrays and host arrays with `__dlpack__`, and returns NumPy arrays. Computes all outputs,
    whichever are requested.
    """

    backend = "openvino"

    def __init__(
        self, bundle: Bundle, artifact: Artifact, computes: str | None = None, threads: int | None = None,
        prefer_convolutions: bool = True,
    ) -> None:
        """Load a graph.

        Args:
            bundle: The bundle with the graph.
            artifact: The graph.
            computes: Arithmetic precision: fp32, bf16, fp16 or int8. Default: that of the graph. Ignored for an INT8
                graph.
            threads: CPU threads. None uses OpenVINO's default.
            prefer_convolutions: In FP32 and INT8, apply `prefer_convolution_kernel` to the graph.

        Raises:
            MissingPackage: OpenVINO is not installed.
            BackendError: The processor does not support the precision, the graph keeps modules in FP32 that OpenVINO
                would not, OpenVINO would compute an INT8 graph in FP32, or the graph cannot be loaded.
            BadBundle, ContractError: The file does not match the manifest.
        """
        super().__init__(bundle.contract, artifact.graph)
        self.file = artifact.file
        eight_bits = artifact.precision in EIGHT_BITS
        self.computes = artifact.precision if eight_bits else computes or artifact.precision or "fp32"
        core = shared_core()
        units = reduced_units()
        if self.computes == "fp8":
            raise BackendError(f"{NO_FP8}. Use precision int8, or an FP8 engine on a GPU.", backend=self.backend)
        if HINTS[self.computes] != "f32" and self.computes not in units:
            have = f"only {_names(units)} units" if units else "neither BF16 nor FP16 units"
            raise BackendError(f"expected a processor with {self.computes.upper()} units to compute {artifact.file}, "
                               f"and this one has {have}. Use precision fp32.", backend=self.backend)
        if refusal := ignored_plan(artifact, self.computes):
            raise BackendError(refusal, backend=self.backend)
        path = bundle.path(artifact)
        options = {"INFERENCE_PRECISION_HINT": HINTS[self.computes], "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        if eight_bits:
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 0  # quantize no activation that the graph does not
        try:
            graph = core.read_model(path)
            self._check(graph, artifact)
            batch = graph.inputs[0].get_partial_shape()[0]
            # Our own graphs take every batch, so one that does not is a fault that its batch has to show.
            self._batch = batch.get_length() if bundle.manifest.imported and batch.is_static else None
            if prefer_convolutions and HINTS[self.computes] == "f32":
                prefer_convolution_kernel(graph)
            self._parts = _compile(core, graph, self.computes, options, artifact.graph == "frame")
        except RuntimeError as error:
            raise BackendError(f"openvino cannot load {path}: {_last_line(error)}. Choose another precision or backend."
                               ) from error
        if eight_bits and not weights_only(artifact) and not any(part.computes_in_int8() for part in self._parts):
            raise BackendError(f"expected INT8 kernels for {artifact.file}, and OpenVINO would compute every layer in "
                               "FP32 on this processor. Use precision fp32.", backend=self.backend)
        self.note = session_note(artifact) or _note(self.computes, units)
        self._lock = threading.Lock()

    def largest_batch(self, size: tuple[int, int]) -> int | None:
        return self._batch

    def _check(self, graph: Any, artifact: Artifact) -> None:
        """Raise `ContractError` if the inputs or outputs of the file differ from the contract."""
        names = [port.get_any_name() for port in (*graph.inputs, *graph.outputs)]
        if names != [*self.inputs, *self.outputs]:
            raise ContractError(f"{artifact.file}: expected inputs and outputs {[*self.inputs, *self.outputs]}, "
                                f"received {names}. Make the bundle again.")

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, np.ndarray]:
        import openvino

        reject_stream(stream, self.backend)
        (name,) = self.inputs
        array = host_array(inputs[name], name)
        if not array.flags.writeable:
            array = array.copy()  # OpenVINO shares only writeable memory
        axes = dict(zip(self.inputs[name].shape, array.shape, strict=True))
        results = {
            output: np.empty([axes[axis] if isinstance(axis, str) else axis for axis in spec.shape], np.float32)
            for output, spec in self.outputs.items()
        }
        with self._lock:
            if self.closed:
                raise BackendError("this openvino session is closed. Load the bundle again.")
            try:
                tensors = {name: openvino.Tensor(array, shared_memory=True)}
                for part in self._parts:
                    part.run(tensors, {key: openvino.Tensor(value, shared_memory=True)
                                       for key, value in results.items() if key in part.outputs})
            except RuntimeError as error:
                shape = list(array.shape)
                raise BackendError(f"openvino could not run {name} {shape}: {_last_line(error)}.") from error
        return {output: results[output] for output in outputs}

    def close(self) -> None:
        """Release the graph after the current call."""
        if not hasattr(self, "_lock"):
            return
        with self._lock:
            super().close()
            self._parts = []


class _Part:
    """A compiled part of the graph and its inference request. Parts exchange tensors by name without copies."""

    def __init__(self, core: Any, graph: Any, inputs: list[str], outputs: list[str], options: dict[str, Any]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._compiled = core.compile_model(graph, "CPU", options)
        self._request = self._compiled.create_infer_request()

    def computes_in_int8(self) -> bool:
        """Whether a matrix layer has eight-bit operands in the kernel that was chosen."""
        for node in self._compiled.get_runtime_model().get_ordered_ops():
            facts = {key: value.astype(str) for key, value in node.get_rt_info().items()
                     if key in ("layerType", "runtimePrecision")}
            if facts.get("layerType") in MATRIX_LAYERS and facts.get("runtimePrecision") in ("i8", "u8"):
                return True
        return False

    def run(self, tensors: dict[str, Any], results: dict[str, Any]) -> None:
        """Read inputs from `tensors`, write outputs to `results` or, if not listed there, add them to `tensors`."""
        for i, name in enumerate(self.inputs):
            self._request.set_input_tensor(i, tensors[name])
        for i, name in enumerate(self.outputs):
            if name in results:
                self._request.set_output_tensor(i, results[name])
        self._request.infer()
        for i, name in enumerate(self.outputs):
            output = self._request.get_output_tensor(i)
            if name not in results:
                tensors[name] = output
            elif output.data.ctypes.data != results[name].data.ctypes.data:
                results[name].data[...] = output.data


def _compile(core: Any, graph: Any, computes: str, options: dict[str, Any], frame: bool) -> list[_Part]:
    """Compile the graph: in three parts for a frame graph in reduced precision, otherwise in one."""
    inputs = [port.get_any_name() for port in graph.inputs]
    outputs = [port.get_any_name() for port in graph.outputs]
    if HINTS[computes] == "f32" or not frame:
        return [_Part(core, graph, inputs, outputs, options)]
    import openvino

    convolutions = [node for node in graph.get_ordered_ops() if node.get_type_name() == "Convolution"]
    if not convolutions:
        raise BackendError(f"openvino computes a frame graph in {computes.upper()} between its first and last "
                           "convolutions, and this graph has none. Use precision fp32.", backend="openvino")
    entry = convolutions[0].input_value(0)
    exits = [node.output(0) for node in _last_convolutions(convolutions)]
    ends = [result.input_value(0) for result in graph.get_results()]
    (source,) = graph.get_parameters()
    image = _replace_by_input(entry)
    features = [_replace_by_input(port) for port in exits]
    names = [f"features {i}" for i in range(len(exits))]
    full = options | {"INFERENCE_PRECISION_HINT": "f32"}
    return [
        _Part(core, openvino.Model([entry], [source], "before"), inputs, ["image"], full),
        # The network reads the batch size from the frame's shape.
        _Part(core, openvino.Model(exits, [source, image], "network"), [*inputs, "image"], names, options),
        _Part(core, openvino.Model(ends, [source, *features], "after"), [*inputs, *names], outputs, full),
    ]


def _last_convolutions(convolutions: list[Any]) -> list[Any]:
    """The convolutions not followed by another one, which end the heads before activation and resize."""
    followed: set[str] = set()
    for node in convolutions:
        pending = [value.get_node() for value in node.input_values()]
        while pending:
            source = pending.pop()
            if source.get_friendly_name() not in followed:
                followed.add(source.get_friendly_name())
                pending += [value.get_node() for value in source.input_values()]
    return [node for node in convolutions if node.get_friendly_name() not in followed]


def _replace_by_input(port: Any) -> Any:
    """Connect all consumers of `port` to a new graph input and return that input."""
    from openvino import opset13

    readers = list(port.get_target_inputs())
    parameter = opset13.parameter(port.get_partial_shape(), port.get_element_type())
    for reader in readers:
        reader.replace_source_output(parameter.output(0))
    return parameter


def reduced_units() -> tuple[str, ...]:
    """Which of bf16 and fp16 this processor supports in hardware. Raises `MissingPackage` without OpenVINO."""
    listed = shared_core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for capability, name in CAPABILITIES.items() if capability in listed)


def ignored_plan(artifact: Artifact, computes: str) -> str | None:
    """Why OpenVINO cannot honour the precision plan of a graph, or None if it can.

    In BF16 and FP16 it computes the whole network in one type, whatever the types in the graph are.
    """
    plan = getattr(artifact.details, "plan", None)
    kept = [name for name in plan.fp32 if name not in PrecisionPlan.fp32] if plan is not None else []
    if HINTS[computes] == "f32" or not kept:
        return None
    names = ", ".join(kept[:3]) + (", ..." if len(kept) > 3 else "")
    return (f"the precision plan of {artifact.file} keeps {len(kept)} modules in FP32 ({names}), and OpenVINO would "
            f"compute all of them in {computes.upper()}. Use precision fp32, or another backend")


def _note(computes: str, units: Sequence[str]) -> str:
    if units:
        others = [unit for unit in units if unit != computes]
        return f"in {computes.upper()}" + (f"; this processor has {_names(others)} units as well" if others else "")
    return f"in {computes.upper()}; this processor has no BF16 or FP16 units, so no faster precision is available"


def _names(units: Sequence[str]) -> str:
    return " and ".join(unit.upper() for unit in units)


def shared_core() -> Any:
    """OpenVINO's Core, one per process. Raises `MissingPackage` without OpenVINO."""
    try:
        import openvino
    except ImportError as error:
        raise missing_package("openvino", "cpu", "run graphs on OpenVINO") from error
    return _core(openvino)


@functools.cache  # OpenVINO unloads its plugins with the last Core
def _core(openvino: Any) -> Any:
    return openvino.Core()


def _last_line(error: Exception) -> str:
    """The reason, which OpenVINO puts after the location in its source code."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")
