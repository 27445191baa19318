"""The steps in order: cheapest and most telling first. Imports neither torch nor anything that a bare machine lacks."""

from __future__ import annotations

from .step import Step

BATCHES = (1, 16)
TORCH = ("torch", "timm", "numpy")
BUNDLE = ("pydantic", "tyro", "rich", "onnx", "cv2")


def _each(name: str, about: str, limit: float, function: str, **options: object) -> list[Step]:
    """A step for each batch size: allocator, clocks and compiled graphs of one do not touch the other."""
    return [Step(f"{name}-{batch}", f"{about}, batch {batch}", limit, function, {"batch": batch}, **options)
            for batch in BATCHES]


STEPS: tuple[Step, ...] = (
    Step("device", "GPU, clocks, power, matrix rates in FP16, TF32 and FP32, memory bandwidth", 90, "hardware:measure",
         needs=("torch", "numpy")),
    *_each("inference", "eager FP32, TF32 and FP16, torch.compile FP16 with CUDA graphs, with parity", 240,
           "inference:measure", needs=TORCH),
    Step("training-6", "AMP training of ViT-B at batch 6: images/s, share of the matrix rate, peak memory", 180,
         "training:measure", {"batch": 6, "compiled": False}, needs=TORCH),
    *_each("profile", "where the time of eager FP16 goes, by operator and kernel", 90, "kernels:measure", needs=TORCH),
    *_each("switches", "attention kernels, layouts, norms, CUDA graphs: one switch each, beside its expected effect",
           300, "switches:measure", needs=TORCH),
    *_each("compile", "modes and options of torch.compile, each beside its expected effect", 480,
           "switches:compiled_modes", needs=TORCH),
    Step("training-6-compiled", "the same training step with torch.compile", 300, "training:measure",
         {"batch": 6, "compiled": True}, needs=TORCH),
    Step("graphs", "export to ONNX with this torch, and parity on ONNX Runtime's CPU provider; needs no GPU", 240,
         "graphs:export", needs=(*TORCH, "onnx", "onnxscript"), gpu=False),
    *_each("onnxruntime", "ONNX Runtime CUDA on these graphs, with parity", 150, "graphs:onnxruntime_cuda",
           needs=(*TORCH, "onnx", "onnxscript", "onnxruntime")),
    Step("build", "bundle of ViT-B and engines of every installed builder", 420, "engines:build", needs=BUNDLE),
    Step("parity", "every stage of the bundle that runs here, against PyTorch FP32", 240, "engines:parity",
         needs=BUNDLE),
    Step("engine-time", "upload, engine and download, each alone; share of the matrix rate", 180,
         "engines:engine_time", needs=BUNDLE),
    *_each("latency", "from a frame to maps, against all peers", 240, "engines:latency_of", needs=BUNDLE),
    Step("leaks", "memory of host and GPU over cycles of load, run and close", 150, "engines:leaks", needs=BUNDLE),
)
NAMES = tuple(step.name for step in STEPS)
