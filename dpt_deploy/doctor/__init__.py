"""Diagnose this machine and a bundle: `python -m dpt_deploy.doctor [BUNDLE]`."""

from ..backends import Check
from .bundle import check_bundle
from .hardware import check_machine

__all__ = ["Check", "check_bundle", "check_machine"]
