"""One build or refit, in a process of its own: `python -m dpt_deploy.build.builder_process`, JSON on standard input.

Polygraphy decides between TensorRT and TensorRT-RTX when it is imported, by an environment variable.
The answer is one line of JSON at the end of standard output.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

from ..backends import device
from .certificate import Layer, certify, not_inspected, read_inspection


def build(order: dict[str, Any]) -> dict[str, Any]:
    """Parse, certify, build, inspect. Without a plan on disk when the certificate failed."""
    import onnx
    from polygraphy.backend.trt import CreateConfig, engine_bytes_from_network, network_from_onnx_path
    from polygraphy.backend.trt import Profile as TrtProfile

    from .flops import input_sizes, matrix_work, modules_of

    trt = importlib.import_module(order["module"])
    builder, network, _ = parsed = network_from_onnx_path(order["onnx"], strongly_typed=True)
    graph = onnx.load(order["onnx"], load_external_data=False)
    size, opset = tuple(order["size"]), max(entry.version for entry in graph.opset_import if not entry.domain)
    layers = _layers(trt, network)
    certificate = certify(
        order["asked"], layers, matrix_work(graph, input_sizes(size)), modules_of(graph), _tensors(network), size,
        opset, order["fp32"],
    )
    answer = {"layers": len(layers), "attention_layers": certificate["attention"]["layers"], "certificate": certificate}
    if certificate["status"] == "failed":
        return answer
    profile = TrtProfile()
    for name, shapes in order["profile"].items():
        profile.add(name, min=tuple(shapes["min"]), opt=tuple(shapes["opt"]), max=tuple(shapes["max"]))
    config = CreateConfig(
        profiles=[profile], profiling_verbosity=trt.ProfilingVerbosity.DETAILED, **_variant(trt, order)
    )(builder, network)
    if order["variant"].get("weights") == "stripped":
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # it gets back the weights it was tuned for
    plan = bytes(engine_bytes_from_network(parsed, config, **_timings(order)))
    certificate |= {
        "profile": order["profile"], "plan_bytes": len(plan), "builder": order["builder"],
        "builder_version": trt.__version__, "flags": _flags(trt, network, config), "gpu": device.compute_capability(),
    }
    _inspect(trt, order, plan, certificate)
    if certificate["status"] == "passed":
        Path(order["plan"]).write_bytes(plan)
    return answer


def refit(order: dict[str, Any]) -> dict[str, Any]:
    """Give an engine the weights of an ONNX graph. Needs a GPU; written from TensorRT's documentation, not yet run."""
    trt = importlib.import_module(order["module"])
    logger = trt.Logger(trt.Logger.ERROR)
    engine = trt.Runtime(logger).deserialize_cuda_engine(Path(order["engine"]).read_bytes())
    if engine is None:
        raise RuntimeError("the engine cannot be loaded here")
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(order["onnx"]):
        errors = [str(parser.get_error(i)) for i in range(parser.num_errors)]
        raise RuntimeError("; ".join(errors) or "the parser refused the graph")
    if missing := refitter.get_missing_weights():
        raise RuntimeError(f"the graph lacks {len(missing)} weights of the engine, such as {missing[0]}")
    if not refitter.refit_cuda_engine():
        raise RuntimeError("the engine refused the weights")
    config = engine.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)
    if order["keep_refittable"]:
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    plan = bytes(engine.serialize_with_config(config))
    Path(order["plan"]).write_bytes(plan)
    return {"plan_bytes": len(plan)}


def _layers(trt: Any, network: Any) -> list[Layer]:
    """Every layer; an attention in FP32 is marked decomposable, because there is no fused kernel for it."""
    found = []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        inputs = [layer.get_input(i) for i in range(layer.num_inputs)]
        outputs = [layer.get_output(i) for i in range(layer.num_outputs)]
        kind, dtype = layer.type.name, outputs[0].dtype.name if outputs else ""
        decomposable = False
        if kind == "ATTENTION_INPUT":
            layer.__class__ = trt.IAttentionInputLayer
            dtype = inputs[0].dtype.name
            if dtype == "FLOAT":
                layer.attention.decomposable = True
            decomposable = bool(layer.attention.decomposable)
        found.append(Layer(
            layer.name, kind, dtype, tuple(tensor.name for tensor in inputs if tensor is not None),
            tuple(tensor.name for tensor in outputs), any(tensor.is_shape_tensor for tensor in outputs), decomposable,
        ))
    return found


def _tensors(network: Any) -> list[dict[str, Any]]:
    """Inputs and outputs of the network."""
    sides = [("input", network.get_input(i)) for i in range(network.num_inputs)]
    sides += [("output", network.get_output(i)) for i in range(network.num_outputs)]
    return [
        {"name": tensor.name, "mode": mode, "dtype": tensor.dtype.name, "shape": list(tensor.shape)}
        for mode, tensor in sides
    ]


def _variant(trt: Any, order: dict[str, Any]) -> dict[str, Any]:
    """Polygraphy's words for what makes the engine another one than the default."""
    variant, words = order["variant"], {}
    if variant.get("weights") == "refittable":
        words["refittable"] = True
    elif variant.get("weights") == "stripped":
        words["strip_plan"] = True
    if variant.get("version_compatible"):
        words["version_compatible"] = True
    if variant.get("hardware_compatible"):
        words["hardware_compatibility_level"] = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if order["old_timings"]:
        words["load_timing_cache"] = order["old_timings"]
    return words


def _timings(order: dict[str, Any]) -> dict[str, str]:
    return {"save_timing_cache": order["new_timings"]} if order["new_timings"] else {}


def _flags(trt: Any, network: Any, config: Any) -> list[str]:
    """Names of the flags that are set, of the network and of the build."""
    flags = [name for name, flag in trt.BuilderFlag.__members__.items() if config.get_flag(flag)]
    creation = trt.NetworkDefinitionCreationFlag.__members__
    return [name for name, flag in creation.items() if network.get_flag(flag)] + flags


def _inspect(trt: Any, order: dict[str, Any], plan: bytes, certificate: dict[str, Any]) -> None:
    """Ask the built engine, where there is a GPU to load it on; in place. Not yet run on a GPU."""
    if certificate["gpu"] is None:
        certificate["inspector"] = not_inspected("no GPU is visible here, and an engine can be loaded on one alone")
        return
    if order["builder"] == "tensorrt-rtx":
        certificate["inspector"] = not_inspected("TensorRT-RTX chooses its kernels when the engine first runs")
        return
    if order["variant"].get("version_compatible"):
        certificate["inspector"] = not_inspected("a version-compatible engine is not loaded while it is built")
        return
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(plan)
    if engine is None:
        certificate["inspector"] = not_inspected("the engine that was just built cannot be loaded here")
        return
    said = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    certificate["inspector"] = seen = read_inspection(said)
    attention = certificate["attention"]
    if attention["status"] == "not run" and seen["status"] == "passed":
        fused = seen["fused_attention"]
        attention |= {"status": "passed", "reason": f"{fused} fused attention layers in the engine"}
        if fused < attention["blocks"]:
            reason = f"{attention['blocks']} blocks have {fused} fused attention layers in the engine"
            attention |= {"status": "failed", "reason": reason}
            certificate |= {"status": "failed", "reasons": [reason]}


if __name__ == "__main__":
    received = json.load(sys.stdin)
    print(json.dumps({"build": build, "refit": refit}[received["do"]](received)))
