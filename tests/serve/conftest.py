"""Fixtures of the tests that run in the main environment; those of the server have their own conftest."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torch") is not None:
    from tests.tiny import own_bundle, tiny_bundle  # noqa: F401
