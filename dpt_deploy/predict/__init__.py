"""Images and folders in, panels and raw maps out."""

from ..report.panel import Tile, arrange, panel
from ..report.writers import write_png

__all__ = ["Tile", "arrange", "panel", "write_png"]
