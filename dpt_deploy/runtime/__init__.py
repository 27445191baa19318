"""Maps from images, on whatever the machine has: engines on TensorRT, graphs on ONNX Runtime. Needs no torch."""

from .runtime import BACKENDS, Prediction, Runtime, load, open_session

__all__ = ["BACKENDS", "Prediction", "Runtime", "load", "open_session"]
