"""Steady maps of videos: optical flow, shots, a filter along the motion, and a measure of flicker."""

from .filter import Steady
from .flicker import flicker
from .flow import Flow, Tracker

__all__ = ["Flow", "Steady", "Tracker", "flicker"]
