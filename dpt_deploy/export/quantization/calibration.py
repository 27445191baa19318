"""Measure the range of each activation on the user's images, and choose where to clip it.

A clip closer than the largest value costs an error in the few values beyond it, and makes the step between the others
finer. The one with the smallest mean squared error is taken, from a histogram of all images (as in Wu et al. 2020,
"Integer quantization for deep learning inference", section 5, with the squared error as criterion).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from ...core.errors import BackendError, BadInput, first_line, missing_package
from .layers import Layer

BINS = 4096
SAMPLED = 1 << 18  # values of one activation of one image that enter the histogram; the largest value is exact
CANDIDATES = 200


class Histogram:
    """The magnitudes of a tensor's values over many images. Its range grows with the data."""

    def __init__(self) -> None:
        self.counts = np.zeros(BINS)
        self.top = 0.0
        """Upper end of the last bin."""
        self.largest = 0.0

    def add(self, values: np.ndarray) -> None:
        """Count the values of one image. Raises `ValueError` if they are not finite."""
        magnitudes = np.abs(values.reshape(-1))
        largest = float(magnitudes.max(initial=0.0))
        if not np.isfinite(largest):
            raise ValueError("values that are not finite")
        self.largest = max(self.largest, largest)
        self.top = self.top or largest
        while self.top < largest:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(1), np.zeros(BINS // 2)])
            self.top *= 2
        if self.top:
            # An odd step meets all rows and channels in turn.
            step = max(1, len(magnitudes) // SAMPLED) | 1
            self.counts += np.histogram(magnitudes[::step], BINS, (0, self.top))[0]

    def clip(self, levels: int) -> float:
        """The clip with the smallest mean squared error, for steps of clip / `levels`. 0 if all values are 0."""
        if not self.largest:
            return 0.0
        centres = (np.arange(BINS) + 0.5) * self.top / BINS
        clips = self.largest * np.linspace(1, 0.02, CANDIDATES)  # of equal errors, the largest clip is taken
        inside = np.searchsorted(centres, clips, side="right")
        # sum of counts * (centre - clip)^2 beyond the clip, from sums of counts times powers of the centre
        sums = [np.concatenate([[0.0], np.cumsum(self.counts * centres**power)]) for power in (0, 1, 2)]
        n, first, second = (total[-1] - total[inside] for total in sums)
        beyond = second - 2 * clips * first + clips**2 * n
        rounding = sums[0][inside] * (clips / levels) ** 2 / 12
        return float(clips[np.argmin(rounding + beyond)])


def measure_ranges(
    graph: Path, layers: Sequence[Layer], images: Iterable[np.ndarray], progress: Callable[[int], None] = lambda n: None
) -> dict[str, Histogram]:
    """Run a model graph in ONNX Runtime and collect the values of the activations of `layers`.

    Args:
        graph: The FP32 model graph.
        layers: Its layers.
        images: The network's input, float32 (3, h, w), one image after the other.
        progress: Called with the number of images so far.

    Returns:
        Histograms by tensor name.

    Raises:
        MissingPackage: ONNX Runtime is not installed.
        BackendError: It cannot run the graph.
        BadInput: An activation is not finite.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", "cpu", "calibrate eight-bit graphs") from error
    model = onnx.load(graph)
    (source,) = (value.name for value in model.graph.input)
    found = {layer.activation: Histogram() for layer in layers}
    names = [name for name in found if name != source]
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for number, image in enumerate(images, 1):
            values = dict(zip(names, session.run(names, {source: image[None]}), strict=True)) | {source: image}
            for name, histogram in found.items():
                try:
                    histogram.add(values[name])
                except ValueError as error:
                    raise BadInput(f"--calibrate: image {number} gives {error} in {name}. Leave it out.") from error
            progress(number)
    except BadInput:
        raise
    except Exception as error:  # ONNX Runtime's exceptions have no other common base class
        raise BackendError(f"onnxruntime cannot run {graph.name} to calibrate it: {first_line(error)}.") from error
    return found


def clips(histograms: Mapping[str, Histogram], levels: int, largest: bool = False) -> dict[str, float]:
    """The clip of each tensor. `largest` takes the largest magnitude, for floating-point eight bits."""
    return {name: h.largest if largest else h.clip(levels) for name, h in histograms.items()}
