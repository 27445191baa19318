"""The model card is written by `parity.judge`; this is its earlier address."""

from .parity.card import write_card

__all__ = ["write_card"]
