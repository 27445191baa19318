"""Eight-bit graphs: calibration, the search for what stays wide, and Q/DQ nodes around matrix products."""

from .step import export_eight_bits

__all__ = ["export_eight_bits"]
