"""Maps from images, on whatever the machine has: TensorRT, ONNX Runtime or OpenVINO. Needs no torch."""

from .runtime import BACKENDS, Backend, Precision, Prediction, Runtime, load, open_session

__all__ = ["BACKENDS", "Backend", "Precision", "Prediction", "Runtime", "load", "open_session"]
