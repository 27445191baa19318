"""`python -m dpt_deploy.build.builder_process`: build or refit one engine in a separate process.

Reads a request as JSON from standard input, and prints the result as one line of JSON, the last of its output.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from ..backends import device
from ..core.plan import plan_from_json
from .certificate import cast_up, certify, not_inspected, read_inspection
from .eight_bits import compare_kernels, read_kernels
from .layers import Layer


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Parse the graph, certify the network, build and inspect the engine. Writes no plan if the certificate failed."""
    import onnx
    from polygraphy.backend.trt import CreateConfig, network_from_onnx_path
    from polygraphy.backend.trt import Profile as TrtProfile
    from polygraphy.exception import PolygraphyException

    from .flops import input_sizes, matrix_work, modules_of

    trt = importlib.import_module(request["module"])
    builder, network, _ = parsed = network_from_onnx_path(request["onnx"], strongly_typed=True)
    graph = onnx.load(request["onnx"], load_external_data=False)
    size, opset = tuple(request["size"]), max(entry.version for entry in graph.opset_import if not entry.domain)
    layers, work, modules = _layers(trt, network), matrix_work(graph, input_sizes(size)), modules_of(graph)
    raised = cast_up(layers)
    precision_plan = plan_from_json(request["precision_plan"]) if request["precision_plan"] else None

    def certified(decomposable: set[str]) -> dict[str, Any]:
        named = [dataclasses.replace(layer, decomposable=layer.decomposable or layer.name in decomposable)
                 for layer in layers]
        return certify(request["precision"], named, work, modules, _tensors(network), size, opset, precision_plan)

    # No fused kernel supports FP32, but some builders have one for half precision that is cast up.
    fp32 = {layer.name for layer in layers if layer.kind == "ATTENTION_INPUT" and layer.dtype == "FLOAT"}
    _decompose(trt, network, fp32 - raised)
    certificate = certified(fp32 - raised)
    result = {"layers": len(layers), "attention_layers": certificate["attention"]["layers"], "certificate": certificate}
    if certificate["status"] == "failed":
        return result
    profile = TrtProfile()
    for name, shapes in request["profile"].items():
        profile.add(name, min=tuple(shapes["min"]), opt=tuple(shapes["opt"]), max=tuple(shapes["max"]))
    config = CreateConfig(
        profiles=[profile], profiling_verbosity=trt.ProfilingVerbosity.DETAILED, **_config_arguments(trt, request)
    )(builder, network)
    if request["variant"].get("weights") == "stripped":
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # refitted only with the weights that it was built with
    if request["variant"].get("turing"):
        if not hasattr(trt, "ComputeCapability"):
            raise RuntimeError(f"{request['builder']} {trt.__version__} cannot build for one compute capability")
        else:  # the test of the bindings reads `hasattr` as the guard of this branch
            config.num_compute_capabilities = 1
            config.set_compute_capability(trt.ComputeCapability.SM75, 0)
    _leave_memory_to_the_caller(trt, config)
    timings = {"save_timing_cache": request["new_timings"]} if request["new_timings"] else {}
    # TensorRT lists its kernels in another form, for which a GPU is needed; the inspector has them.
    lists_kernels = "eight_bits" in certificate and request["builder"] == "tensorrt-rtx"
    try:
        plan, log = _build_plan(parsed, config, timings, lists_kernels)
    except PolygraphyException as error:
        if not raised:
            raise
        refusal = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        _decompose(trt, network, raised)
        plan, log = _build_plan(parsed, config, timings, lists_kernels)
        certificate = result["certificate"] = certified(fp32)
        certificate["attention"]["reason"] += f" ({refusal.strip()[:200]})"
    certificate |= {
        "profile": request["profile"], "plan_bytes": len(plan), "builder": request["builder"],
        "builder_version": trt.__version__, "flags": _flags(trt, network, config), "gpu": device.compute_capability(),
    }
    _inspect(trt, request, plan, certificate)
    if "eight_bits" in certificate:
        listed = read_kernels(log) if lists_kernels else []
        kernels = compare_kernels(request["precision"], listed, layers, work)
        certificate["eight_bits"]["kernels"] = kernels
        if kernels["status"] == "failed":
            certificate |= {"status": "failed", "reasons": [*certificate["reasons"], kernels["reason"]]}
    if certificate["status"] == "passed":
        Path(request["plan"]).write_bytes(plan)
    return result


def _build_plan(parsed: Any, config: Any, timings: dict[str, Any], verbose: bool) -> tuple[bytes, str]:
    """The engine file, and the builder's log, whose verbose lines are not printed."""
    from polygraphy.backend.trt import engine_bytes_from_network
    from polygraphy.logger import G_LOGGER

    log = io.StringIO()
    try:
        severity = G_LOGGER.EXTRA_VERBOSE if verbose else G_LOGGER.INFO
        with contextlib.redirect_stdout(log), G_LOGGER.verbosity(severity):
            return bytes(engine_bytes_from_network(parsed, config, **timings)), log.getvalue()
    finally:
        print("\n".join(line for line in log.getvalue().splitlines() if line.startswith(("[E]", "[W]", "[I]"))))


def refit(request: dict[str, Any]) -> dict[str, Any]:
    """Replace the weights of an engine by those of an ONNX graph. Needs a GPU; never tested on one."""
    trt = importlib.import_module(request["module"])
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(Path(request["engine"]).read_bytes())
    if engine is None:
        raise RuntimeError("the engine cannot be deserialized on this machine")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(request["onnx"]):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise RuntimeError("; ".join(errors) or "the parser rejected the graph")
    if missing := refitter.get_missing_weights():
        raise RuntimeError(f"{len(missing)} weights of the engine are missing from the graph, such as {missing[0]}")
    if not refitter.refit_cuda_engine():
        raise RuntimeError("refitting the engine failed")
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if request["keep_refittable"]:
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    plan = bytes(engine.serialize_with_config(config))
    Path(request["plan"]).write_bytes(plan)
    return {"plan_bytes": len(plan)}


def _layers(trt: Any, network: Any) -> list[Layer]:
    """All layers."""
    layers = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        kind, dtype = layer.type.name, outputs[0].dtype.name if outputs else ""
        decomposable = False
        if kind == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            dtype, decomposable = inputs[0].dtype.name, bool(layer.attention.decomposable)
        layers.append(Layer(
            layer.name, kind, dtype, tuple(tensor.name for tensor in inputs if tensor is not None),
            tuple(tensor.name for tensor in outputs), any(tensor.is_shape_tensor for tensor in outputs), decomposable,
        ))
    return layers


def _decompose(trt: Any, network: Any, names: set[str]) -> None:
    """Allow the builder to use separate kernels for these attention layers."""
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name in names:
            layer.__class__ = trt.IAttentionInputLayer
            layer.attention.decomposable = True


def _tensors(network: Any) -> list[dict[str, Any]]:
    sides = [("input", network.get_input(i)) for i in range(network.num_inputs)]
    sides += [("output", network.get_output(i)) for i in range(network.num_outputs)]
    return [{"name": tensor.name, "mode": mode, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
            for mode, tensor in sides]


def _config_arguments(trt: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Arguments of Polygraphy's `CreateConfig` for the requested kind of engine and the timing cache."""
    variant, arguments = request["variant"], {}
    if variant.get("weights") == "refittable":
        arguments["refittable"] = True
    elif variant.get("weights") == "stripped":
        arguments["strip_plan"] = True
    if variant.get("version_compatible"):
        arguments["version_compatible"] = True
    if variant.get("hardware_compatible"):
        arguments["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if request["old_timings"]:
        arguments["load_timing_cache"] = request["old_timings"]
    return arguments


def _leave_memory_to_the_caller(trt: Any, config: Any) -> None:
    """Let scratch memory follow the shapes of a call, and let the caller allocate all of it.

    Without the preview feature, a small frame takes the scratch memory of the profile's largest one. Without the flag,
    TensorRT-RTX may allocate memory during calls with large shapes, which then cannot be captured as CUDA graphs.
    """
    if hasattr(trt.PreviewFeature, "RUNTIME_ACTIVATION_RESIZE_10_10"):
        config.set_preview_feature(trt.PreviewFeature.RUNTIME_ACTIVATION_RESIZE_10_10, True)
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)


def _flags(trt: Any, network: Any, config: Any) -> list[str]:
    """Names of the flags and preview features that are set for the network and the build."""
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    features = trt.PreviewFeature.__members__
    flags += [name for name, feature in features.items() if config.get_preview_feature(feature)]
    creation = trt.NetworkDefinitionCreationFlag.__members__
    return [name for name, flag in creation.items() if network.get_flag(flag)] + flags


def _inspect(trt: Any, request: dict[str, Any], plan: bytes, certificate: dict[str, Any]) -> None:
    """Run the engine inspector if a GPU is visible; changes `certificate` in place. Never tested on a GPU."""
    reason = engine = None
    if certificate["gpu"] is None:
        reason = "loading an engine needs a GPU, and none is visible"
    elif request["builder"] == "tensorrt-rtx":
        reason = "TensorRT-RTX chooses its kernels when the engine first runs"
    elif request["variant"].get("version_compatible"):
        reason = "version-compatible engines are not loaded during the build"
    elif (engine := trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)) is None:
        reason = "the engine cannot be deserialized on this machine"
    if reason is not None:
        certificate["inspector"] = not_inspected(reason)
        return
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    certificate["inspector"] = inspection = read_inspection(information)
    attention = certificate["attention"]
    if attention["status"] == "not run" and inspection["status"] == "passed":
        fused = inspection["fused_attention"]
        attention |= {"status": "passed", "reason": f"the engine has {fused} fused attention layers"}
        if fused < attention["blocks"]:
            reason = f"the engine has {fused} fused attention layers for {attention['blocks']} blocks"
            attention |= {"status": "failed", "reason": reason}
            certificate |= {"status": "failed", "reasons": [reason]}


if __name__ == "__main__":
    request = json.load(sys.stdin)
    print(json.dumps({"build": build, "refit": refit}[request["action"]](request)))
