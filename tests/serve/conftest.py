"""The tiny bundle for the tests of this folder. Those in server/ have an environment without torch to make it."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torch") is not None:
    from tests.tiny import canonical_bundle, own_bundle, tiny_bundle  # noqa: F401
