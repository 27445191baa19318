"""Which backend a processor gets: measured once on the bundle, remembered, and never in the way of loading.

No test asserts a time: toy backends take so long that the order is beyond doubt.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpt_deploy import backends
from dpt_deploy.backends import Session, SessionOptions
from dpt_deploy.core.bundle import Bundle
from dpt_deploy.core.errors import BackendError
from dpt_deploy.core.manifest import Artifact
from dpt_deploy.runtime import load, preference
from tests.backends.test_registry import ToyBackend, ToySession
from tests.tiny import photo

SLOW, FAST = 0.3, 0.0  # planted delay [s]


class DelayedSession(ToySession):
    """Counts its calls, and waits in each."""

    def __init__(self, bundle: Bundle, artifact: Artifact, owner: Delayed) -> None:
        super().__init__(bundle, artifact, 1.0)
        self.backend, self.owner = owner.name, owner

    def _run(self, inputs: Mapping[str, Any], outputs: list[str], stream: int | None) -> dict[str, np.ndarray]:
        self.owner.calls += 1
        if self.owner.fails:
            raise BackendError("the toy broke")
        time.sleep(self.owner.delay)
        return super()._run(inputs, outputs, stream)


class Delayed(ToyBackend):
    """A backend whose sessions are as slow as told."""

    package = "toy_engine"

    def __init__(self, name: str, delay: float, missing: bool = False, fails: bool = False) -> None:
        super().__init__(missing=missing)
        self.name, self.title, self.delay, self.fails = name, name, delay, fails
        self.calls, self.sessions = 0, []

    def open(self, bundle: Bundle, artifact: Artifact, options: SessionOptions) -> Session:
        self.sessions.append(DelayedSession(bundle, artifact, self))
        return self.sessions[-1]

    @property
    def opened(self) -> int:
        """How many sessions are open."""
        return sum(not session.closed for session in self.sessions)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the measurements, in a cache folder of the test's own, with measuring on and a toy engine 1.0."""
    monkeypatch.delenv(preference.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(preference, "SECONDS", 0.0)
    version(monkeypatch, "1.0")
    return tmp_path / "dpt-deploy" / "preference"


def version(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    module = types.ModuleType("toy_engine")
    module.__version__ = text
    monkeypatch.setitem(sys.modules, "toy_engine", module)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes the given backends, in this order of preference, the only ones that `load` considers by itself."""
    for backend in backends.registered():
        monkeypatch.setattr(backend, "automatic", False)
    added: list[Delayed] = []

    def add(*toys: Delayed) -> tuple[Delayed, ...]:
        for toy in toys:
            backends.register(toy)
            added.append(toy)
        return toys

    yield add
    for toy in added:
        backends.unregister(toy.name)


def chosen(bundle: Path, **options: Any) -> tuple[str, str]:
    with load(bundle, **options) as runtime:
        return runtime.backend, runtime.reason


def test_the_fastest_is_kept_and_the_others_are_closed(tiny_bundle: Path, cache: Path, only: Any) -> None:
    slow, fast = only(Delayed("slow", SLOW), Delayed("fast", FAST))
    with load(tiny_bundle) as runtime:
        assert runtime.backend == "fast"
        assert (slow.opened, fast.opened) == (0, 1)
        assert "the fastest on this processor, measured 20" in runtime.reason
        assert "slow with frame.fp32.onnx takes " in runtime.reason and "times as long" in runtime.reason
    assert slow.calls == fast.calls == 1 + preference.ROUNDS[0]
    assert len(list(cache.glob("*.json"))) == 1


def test_the_second_load_reads_what_the_first_measured(tiny_bundle: Path, cache: Path, only: Any) -> None:
    slow, fast = only(Delayed("slow", SLOW), Delayed("fast", FAST))
    first = chosen(tiny_bundle)
    before = (slow.calls, fast.calls, len(slow.sessions))
    assert chosen(tiny_bundle) == first
    assert (slow.calls, fast.calls, len(slow.sessions)) == before


@pytest.mark.parametrize("content", [
    b"", b"{", b"\xff\xfe", b"null", b"[" * 100_000, b'{"measured": "yesterday", "calls": []}',
    b'{"measured": "2026-01-01T00:00:00Z", "calls": [["slow", "frame.fp32.onnx", 0.1], ["x", "y", 1]]}',
    b'{"measured": "2026-01-01T00:00:00Z", "calls": [["slow", "frame.fp32.onnx", -1], ["fast", "frame.fp32.onnx", 1]]}',
])
def test_a_damaged_record_is_measured_again(tiny_bundle: Path, cache: Path, only: Any, content: bytes) -> None:
    _, fast = only(Delayed("slow", SLOW), Delayed("fast", FAST))
    chosen(tiny_bundle)
    (path,) = cache.glob("*.json")
    path.write_bytes(content)
    before = fast.calls
    assert chosen(tiny_bundle)[0] == "fast" and fast.calls > before
    assert json.loads(path.read_text())["calls"][0][0] == "fast"


def test_another_version_or_number_of_threads_is_measured_again(
    tiny_bundle: Path, cache: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = only(Delayed("first", SLOW), Delayed("second", FAST))
    assert chosen(tiny_bundle)[0] == "second"
    first.delay, second.delay = FAST, SLOW
    assert chosen(tiny_bundle)[0] == "second"
    version(monkeypatch, "2.0")
    assert chosen(tiny_bundle)[0] == "first"
    assert chosen(tiny_bundle, threads=1)[0] == "first"
    assert len(list(cache.glob("*.json"))) == 3


def test_a_folder_that_cannot_be_written_is_no_error(
    tiny_bundle: Path, cache: Path, only: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(Delayed("slow", SLOW), Delayed("fast", FAST))
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    for _ in range(2):
        assert chosen(tiny_bundle)[0] == "fast"


def test_without_measuring_the_fixed_order_holds(
    tiny_bundle: Path, cache: Path, only: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, fast = only(Delayed("slow", SLOW), Delayed("fast", FAST))
    assert chosen(tiny_bundle, measure=False)[0] == "slow"
    assert chosen(tiny_bundle, backend="slow")[0] == "slow"
    assert chosen(tiny_bundle, precision="fp32")[0] == "slow"
    monkeypatch.setenv(preference.VARIABLE, "0")
    assert chosen(tiny_bundle)[0] == "slow"
    assert slow.calls == fast.calls == 0 and not cache.exists()


def test_a_gpu_is_preferred_unmeasured(tiny_bundle: Path, cache: Path, only: Any) -> None:
    gpu, first, second = only(Delayed("gpu", SLOW), Delayed("first", FAST), Delayed("second", FAST))
    gpu.device = "gpu"
    assert chosen(tiny_bundle)[0] == "gpu"
    assert gpu.calls == first.calls == second.calls == 0 and not cache.exists()
    gpu.missing, second.delay = True, SLOW
    name, reason = chosen(tiny_bundle)
    assert name == "first" and "not gpu: the toy box is empty" in reason


def test_what_does_not_run_takes_no_part(tiny_bundle: Path, cache: Path, only: Any) -> None:
    broken, _, missing = only(Delayed("broken", FAST, fails=True), Delayed("good", SLOW),
                              Delayed("missing", FAST, missing=True))
    name, reason = chosen(tiny_bundle)
    assert name == "good" and "not broken: the toy broke" in reason and "measured" not in reason
    assert broken.opened == 0 and not missing.sessions
    assert not cache.exists()  # one alone has nothing to be compared with


def test_real_backends_are_measured(tiny_bundle: Path, cache: Path) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    if any(one.device == "gpu" and one.unavailable() is None for one in backends.registered()):
        pytest.skip("a GPU is preferred here")
    with load(tiny_bundle) as runtime:
        assert "the fastest on this processor" in runtime.reason
        assert runtime(photo(64, 80)).depth.shape == (64, 80)
    with load(tiny_bundle, graph="model") as runtime:
        assert "the fastest on this processor" in runtime.reason
    assert len(list(cache.glob("*.json"))) == 2
