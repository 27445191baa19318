"""Create and read DLPack capsules with ctypes (dlpack.h, version 0)."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
"""DLDeviceType of host memory, CUDA memory and CUDA managed memory."""

_UNUSED = b"dltensor"  # a consumer renames the capsule to used_dltensor and later calls the deleter
_KINDS = {"i": 0, "u": 1, "f": 2}


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("device_type", ctypes.c_int32), ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32), ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Managed(ctypes.Structure):
    """DLManagedTensor."""

    _fields_ = (("tensor", _Tensor), ("context", ctypes.c_void_p),
                ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)))


_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(("PyCapsule_New", _api))
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))
# A destructor receives an address, because a new reference would resurrect the capsule.
_is_unused = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", _api))
_address = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_GetPointer", _api))

_shared: dict[int, tuple[Any, ...]] = {}  # objects that consumers still use, by the address of the struct


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _deleter(address: int) -> None:
    _shared.pop(address, None)


@ctypes.PYFUNCTYPE(None, ctypes.c_void_p)
def _destructor(capsule: int) -> None:
    if _is_unused(capsule, _UNUSED):
        _shared.pop(_address(capsule, _UNUSED), None)


def make_capsule(pointer: int, shape: tuple[int, ...], dtype: Any, device: tuple[int, int], owner: Any) -> Any:
    """Create a capsule for C-contiguous memory at `pointer` on `device` (DLDeviceType, index).

    `owner` keeps the memory alive until the consumer releases it, or until an unused capsule is destroyed.
    """
    dtype = np.dtype(dtype)
    dims = (ctypes.c_int64 * len(shape))(*shape)
    tensor = _Tensor(pointer, *device, len(shape), _KINDS[dtype.kind], 8 * dtype.itemsize, 1, dims, None, 0)
    managed = _Managed(tensor, None, _deleter)
    address = ctypes.addressof(managed)
    _shared[address] = (managed, dims, owner)
    return _new(address, _UNUSED, ctypes.cast(_destructor, ctypes.c_void_p))


def memory(capsule: Any) -> tuple[int, tuple[int, ...], tuple[int, ...] | None]:
    """Address, shape and strides [elements] of an unused capsule. Strides are None if C-contiguous."""
    tensor = _Tensor.from_address(_pointer(capsule, _UNUSED))
    shape = tuple(tensor.shape[: tensor.ndim])
    strides = tuple(tensor.strides[: tensor.ndim]) if tensor.strides else None
    return (tensor.data or 0) + tensor.byte_offset, shape, strides
