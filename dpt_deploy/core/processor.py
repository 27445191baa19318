"""The processor's instruction sets, as the Linux kernel lists them."""

from __future__ import annotations

import functools
import platform
import re
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
EIGHT_BIT_UNITS = {
    "amx_int8": "AMX-INT8", "avx512_vnni": "AVX-512 VNNI", "avx_vnni": "AVX-VNNI", "i8mm": "I8MM",
    "asimddp": "the dot product extension",
}
"""Flags of instructions that add 8-bit products in 32 bits, and their names."""


def cpuinfo() -> str:
    """The kernel's description of the first core. Empty on other systems than Linux."""
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace").partition("\n\n")[0]
    except OSError:
        return ""


def model_name() -> str:
    """The name of the processor, or the name of the architecture if the kernel gives none."""
    found = re.search(r"^model name\s*:\s*(.*)", cpuinfo(), re.MULTILINE)
    return found[1].strip() if found else platform.machine()


@functools.cache
def flags() -> frozenset[str]:
    """The instruction sets, such as avx2, avx512_vnni or asimddp. Empty if they are not known."""
    found = re.search(r"^(?:flags|Features)\s*:\s*(.*)", cpuinfo(), re.MULTILINE)
    return frozenset(found[1].split()) if found else frozenset()


def eight_bit_units() -> tuple[str, ...]:
    """The names of the processor's 8-bit dot product instructions, the widest first."""
    return tuple(name for flag, name in EIGHT_BIT_UNITS.items() if flag in flags())


def may_saturate() -> bool:
    """Whether 8-bit products may saturate in 16 bits: on x86 without VNNI and AMX, where libraries use VPMADDUBSW."""
    return bool(flags()) and is_x86() and not eight_bit_units()


def is_x86() -> bool:
    """Whether the processor is an x86 with 64 bits."""
    return platform.machine() in ("x86_64", "AMD64")


def eight_bit_summary() -> str:
    """What the processor has for 8-bit products, in a few words."""
    if units := eight_bit_units():
        return f"this processor has {' and '.join(units)}"
    if not flags():
        return "whether this processor has 8-bit dot products is not known"
    return f"this processor has no {'VNNI' if may_saturate() else 'dot product instructions'}"
