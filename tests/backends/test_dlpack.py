"""Capsules that other libraries read, on host memory: what differs on a GPU is the device's number."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest

from dpt_deploy.backends import dlpack


class Shared:
    """An array that other libraries see through our capsule alone."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self):
        return dlpack.CPU, 0

    def __dlpack__(self, **_):
        return dlpack.make_capsule(self.array.ctypes.data, self.array.shape, self.array.dtype, (dlpack.CPU, 0), self)


def from_numpy(source):
    return np.from_dlpack(source)


def from_torch(source):
    return pytest.importorskip("torch").from_dlpack(source)


@pytest.mark.parametrize("read", [from_numpy, from_torch])
@pytest.mark.parametrize("dtype", ["uint8", "float32", "float16", "int64"])
def test_a_consumer_reads_the_memory_in_place(read, dtype):
    source = Shared(np.arange(24).reshape(2, 3, 4).astype(dtype))
    got = read(source)
    source.array[1, 2, 3] = 99
    assert tuple(got.shape) == (2, 3, 4) and str(got.dtype).endswith(dtype)
    assert float(got[1, 2, 3]) == 99 and float(got[0, 1, 2]) == 6


@pytest.mark.parametrize("read", [from_numpy, from_torch])
def test_the_memory_lives_as_long_as_its_consumer(read):
    source = Shared(np.arange(6.0))
    alive = weakref.ref(source)
    got = read(source)
    del source
    gc.collect()
    assert alive() is not None and float(got[5]) == 5
    del got
    gc.collect()
    assert alive() is None and not dlpack._shared


def test_a_capsule_that_nobody_reads_lets_its_memory_go():
    source = Shared(np.arange(6.0))
    alive = weakref.ref(source)
    capsule = source.__dlpack__()
    del source
    assert alive() is not None
    del capsule
    gc.collect()
    assert alive() is None


def test_what_is_written_is_read():
    array = np.zeros((5, 7), np.float32)
    assert dlpack.memory(Shared(array).__dlpack__()) == (array.ctypes.data, (5, 7), None)
