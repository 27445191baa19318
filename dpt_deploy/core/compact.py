"""Compact forms of the maps: fewer bytes to send or to store, each with the largest error it can add."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from .errors import BadInput

MILLIMETRES_MAX = 65.535
"""Largest depth [m] of the form "uint16-mm"; what is farther, 0 m or below, or not finite is stored as 0: no depth."""


@dataclass(frozen=True)
class Form:
    """One way to store a map."""

    head: str
    name: str
    dtype: str
    channels: int
    """1 stands for (H, W); more for (H, W, channels)."""
    error: str
    """The largest error it adds, in words."""
    encode: Callable[[np.ndarray], np.ndarray]
    decode: Callable[[np.ndarray], np.ndarray]
    depth_relative: float = 0.0
    """Largest relative error of depth; `depth_metres` comes on top."""
    depth_metres: float = 0.0
    """Largest absolute error of depth [m], from `depth_range` on."""
    depth_range: tuple[float, float] = (0.0, np.inf)
    """Depths [m] for which the errors hold."""
    degrees: float = 0.0
    """Largest angle between a normal and its stored form [degrees]."""
    alpha: float = 0.0
    """Largest absolute error of alpha."""

    @property
    def bytes(self) -> int:
        """Bytes per pixel."""
        return self.channels * np.dtype(self.dtype).itemsize

    @property
    def plain(self) -> bool:
        """Whether it is the form that the runtime gives."""
        return self.name == "float32"

    @property
    def output(self) -> str:
        """The name of the output of a served graph that has the map in this form, such as depth_uint16_mm."""
        return self.head if self.plain else f"{self.head}_{self.name.replace('-', '_')}"


def form(head: str, name: str) -> Form:
    """The form `name` of a head. Raises `BadInput` with the names that exist."""
    forms = FORMS.get(head)
    if forms is None:
        raise BadInput(f"head: expected one of {', '.join(FORMS)}, received {head!r}.")
    if name not in forms:
        raise BadInput(f"{head}: expected one of the forms {', '.join(forms)}, received {name!r}.")
    return forms[name]


def form_of_output(name: str) -> Form | None:
    """The form in which an output of a served graph has its map; None if the output has another name."""
    found = [one for forms in FORMS.values() for one in forms.values() if one.output == name]
    return found[0] if found else None


def encode(head: str, name: str, values: np.ndarray) -> np.ndarray:
    """A float32 map, (..., H, W) or (..., H, W, 3) for normals, in the form `name`."""
    return form(head, name).encode(values)


def decode(head: str, name: str, stored: np.ndarray) -> np.ndarray:
    """The float32 map that a stored form stands for.

    Depth that was stored as 0 millimetres is infinite. A pixel without a normal (0, 0, 0) is one again, except in the
    octahedral forms, which have no such value: there it becomes (0, 0, 1).
    """
    return form(head, name).decode(stored)


def _to_float16(values: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def _to_float32(stored: np.ndarray) -> np.ndarray:
    return stored.astype(np.float32)


def _to_millimetres(depth: np.ndarray) -> np.ndarray:
    """Rounded half to even, as ONNX's Round does; at least 1 above 0 m, since 0 stands for no depth."""
    with np.errstate(invalid="ignore", over="ignore"):
        rounded = np.rint(depth * np.float32(1000))
        stored = np.where((depth > 0) & (rounded <= 65535), np.maximum(rounded, 1), 0)
    return stored.astype(np.uint16)


def _from_millimetres(stored: np.ndarray) -> np.ndarray:
    depth = stored.astype(np.float32) / np.float32(1000)
    return np.where(stored == 0, np.float32(np.inf), depth)


def _to_int8(normals: np.ndarray) -> np.ndarray:
    return np.rint(_bounded(normals) * np.float32(127)).astype(np.int8)


def _bounded(normals: np.ndarray) -> np.ndarray:
    return np.clip(np.nan_to_num(normals), -1, 1)


def _from_int8(stored: np.ndarray) -> np.ndarray:
    return _unit(stored.astype(np.float32))


def _to_unsigned(scale: float, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    def to_unsigned(normals: np.ndarray) -> np.ndarray:
        components = _bounded(normals) * np.float32(0.5) + np.float32(0.5)
        return np.rint(components * np.float32(scale)).astype(dtype)

    return to_unsigned


def _from_unsigned(scale: float) -> Callable[[np.ndarray], np.ndarray]:
    # No unsigned number stands for 0: without a normal, the components are half a step away from it.
    return lambda stored: _unit(stored.astype(np.float32) * np.float32(2 / scale) - np.float32(1), least=0.5)


def _octahedral(scale: float, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    def to_octahedral(normals: np.ndarray) -> np.ndarray:
        normals = _bounded(normals)
        length = np.maximum(np.abs(normals).sum(axis=-1, keepdims=True), np.float32(1e-12))
        x, y, z = np.moveaxis(normals / length, -1, 0)
        folded_x = (1 - np.abs(y)) * np.where(x >= 0, np.float32(1), np.float32(-1))
        folded_y = (1 - np.abs(x)) * np.where(y >= 0, np.float32(1), np.float32(-1))
        both = np.stack([np.where(z < 0, folded_x, x), np.where(z < 0, folded_y, y)], axis=-1)
        return np.rint(np.clip(both, -1, 1) * np.float32(scale)).astype(dtype)

    return to_octahedral


def _from_octahedral(scale: float) -> Callable[[np.ndarray], np.ndarray]:
    def from_octahedral(stored: np.ndarray) -> np.ndarray:
        x, y = np.moveaxis(stored.astype(np.float32) / np.float32(scale), -1, 0)
        z = 1 - np.abs(x) - np.abs(y)
        fold = np.maximum(-z, 0)
        return _unit(np.stack([x - np.where(x >= 0, fold, -fold), y - np.where(y >= 0, fold, -fold), z], axis=-1))

    return from_octahedral


def _unit(vectors: np.ndarray, least: float = 1e-12) -> np.ndarray:
    """Vectors of length 1, float32; 0 for those shorter than `least`."""
    length = np.sqrt((vectors * vectors).sum(axis=-1, keepdims=True))
    return np.where(length < least, np.float32(0), vectors / np.maximum(length, np.float32(least)))


def _to_fraction(scale: float, dtype: type) -> Callable[[np.ndarray], np.ndarray]:
    return lambda alpha: np.rint(np.clip(np.nan_to_num(alpha), 0, 1) * np.float32(scale)).astype(dtype)


def _from_fraction(scale: float) -> Callable[[np.ndarray], np.ndarray]:
    return lambda stored: stored.astype(np.float32) / np.float32(scale)


def _forms(*forms: Form) -> Mapping[str, Form]:
    return MappingProxyType({one.name: one for one in forms})


# Octahedral: Meyer, Suessmuth, Sussner, Stamminger, Greiner, "On Floating-Point Normal Vectors", EGSR 2010.
FORMS: Mapping[str, Mapping[str, Form]] = MappingProxyType({
    "depth": _forms(
        Form("depth", "float32", "float32", 1, "none", _to_float32, _to_float32),
        # 2**-25: half of the smallest step of float16, which counts below 0.06 mm.
        Form("depth", "float16", "float16", 1, "0.049 % of the depth, up to 65504 m", _to_float16, _to_float32,
             depth_relative=2**-11, depth_metres=2**-25, depth_range=(0.0, 65504.0)),
        Form("depth", "uint16-mm", "uint16", 1, "0.5 mm, from 0.5 mm to 65.535 m", _to_millimetres, _from_millimetres,
             depth_metres=0.000505, depth_range=(0.0005, MILLIMETRES_MAX)),
    ),
    "normals": _forms(
        Form("normals", "float32", "float32", 3, "none", _to_float32, _to_float32),
        Form("normals", "float16", "float16", 3, "0.03 degrees", _to_float16, _to_float32, degrees=0.03),
        Form("normals", "int8", "int8", 3, "0.4 degrees", _to_int8, _from_int8, degrees=0.4),
        Form("normals", "uint8", "uint8", 3, "0.4 degrees", _to_unsigned(255, np.uint8), _from_unsigned(255),
             degrees=0.4),
        Form("normals", "uint16", "uint16", 3, "0.0016 degrees", _to_unsigned(65535, np.uint16), _from_unsigned(65535),
             degrees=0.0016),
        Form("normals", "octahedral", "int8", 2, "1 degree", _octahedral(127, np.int8), _from_octahedral(127),
             degrees=1.0),
        Form("normals", "octahedral16", "int16", 2, "0.004 degrees", _octahedral(32767, np.int16),
             _from_octahedral(32767), degrees=0.004),
    ),
    "alpha": _forms(
        Form("alpha", "float32", "float32", 1, "none", _to_float32, _to_float32),
        Form("alpha", "float16", "float16", 1, "0.00025", _to_float16, _to_float32, alpha=0.00025),
        Form("alpha", "uint8", "uint8", 1, "0.002", _to_fraction(255, np.uint8), _from_fraction(255),
             alpha=1 / 510 + 1e-6),
        Form("alpha", "uint16", "uint16", 1, "0.000008", _to_fraction(65535, np.uint16), _from_fraction(65535),
             alpha=1 / 131070 + 1e-7),
    ),
})
"""The forms of each head by name; the first is what the runtime gives."""
