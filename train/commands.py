"""How the commands of this package are called, for messages.

A clone has the package as `train`, an installation as `dpt_train`, and `dpt` calls either.
"""

from __future__ import annotations

import sys

DPT_NAMES = {
    "train": "train", "train.check": "check-data", "train.evaluate": "evaluate", "train.prepare": "prepare",
    "train.synthetic": "synthesize", "dpt_deploy.export": "export",
}
"""Module -> the command of `dpt` that runs it."""


def command(module: str) -> str:
    """A shell line that runs a command, for the way in which the running one was started.

    Args:
        module: A key of `DPT_NAMES`.

    Returns:
        For "train.check": "dpt check-data" if `dpt` started this process, else "python -m train.check".
    """
    if sys.argv[0].startswith("dpt "):
        return f"dpt {DPT_NAMES[module]}"
    first, *rest = module.split(".")
    return "python -m " + ".".join([__package__ if first == "train" else first, *rest])
