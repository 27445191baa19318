"""Run a bundle on images with TensorRT, ONNX Runtime or OpenVINO. Does not need PyTorch."""

from .runtime import Precision, Prediction, Runtime, load

__all__ = ["Precision", "Prediction", "Runtime", "load"]
