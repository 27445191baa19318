"""Run a bundle on images with TensorRT, ONNX Runtime or OpenVINO. Does not need PyTorch."""

from .prediction import Prediction
from .runtime import Precision, Runtime, load

__all__ = ["Precision", "Prediction", "Runtime", "load"]
