"""Maps from images, on whatever the machine has: TensorRT, ONNX Runtime or OpenVINO. Needs no torch."""

from .runtime import Backend, Precision, Prediction, Runtime, load

__all__ = ["Backend", "Precision", "Prediction", "Runtime", "load"]
