"""The processor's instruction sets, read from what a kernel wrote on several machines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpt_deploy.core import processor

ZEN4 = "processor\t: 0\nmodel name\t: AMD EPYC 9R14\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512_bf16\n"
ZEN3 = "processor\t: 0\nmodel name\t: AMD EPYC 7R13\nflags\t\t: fpu avx2 vaes\n"
RAPIDS = "processor\t: 0\nmodel name\t: Intel(R) Xeon(R)\nflags\t\t: avx2 avx512_vnni avx_vnni amx_int8 amx_bf16\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd asimddp i8mm\nCPU part\t: 0xd40\n"
OLD_ARM = "processor\t: 0\nFeatures\t: fp asimd\n"


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Plants the kernel's text and the name of the architecture."""

    def plant(text: str, machine: str) -> None:
        file = tmp_path / "cpuinfo"
        file.write_text(f"{text}\n{text.replace('avx512_vnni', 'other core')}" if text else "")
        monkeypatch.setattr(processor, "CPUINFO", file if text else tmp_path / "none")
        monkeypatch.setattr(processor.platform, "machine", lambda: machine)
        processor.flags.cache_clear()

    yield plant
    monkeypatch.undo()
    processor.flags.cache_clear()


@pytest.mark.parametrize(
    ("text", "machine", "name", "units", "saturates", "summary"),
    [
        (ZEN4, "x86_64", "AMD EPYC 9R14", ("AVX-512 VNNI",), False, "this processor has AVX-512 VNNI"),
        (ZEN3, "x86_64", "AMD EPYC 7R13", (), True, "this processor has no VNNI"),
        (RAPIDS, "x86_64", "Intel(R) Xeon(R)", ("AMX-INT8", "AVX-512 VNNI", "AVX-VNNI"), False,
         "this processor has AMX-INT8 and AVX-512 VNNI and AVX-VNNI"),
        (ARM, "aarch64", "aarch64", ("I8MM", "the dot product extension"), False,
         "this processor has I8MM and the dot product extension"),
        (OLD_ARM, "aarch64", "aarch64", (), False, "this processor has no dot product instructions"),
        ("", "x86_64", "x86_64", (), False, "whether this processor has 8-bit dot products is not known"),
    ],
)
def test_what_a_processor_has(
    on: Callable[[str, str], None], text: str, machine: str, name: str, units: tuple[str, ...], saturates: bool,
    summary: str,
) -> None:
    on(text, machine)
    assert processor.model_name() == name
    assert processor.eight_bit_units() == units
    assert processor.may_saturate() is saturates
    assert processor.eight_bit_summary() == summary
