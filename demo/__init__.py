"""`make demo`: export, judge and run the small model in this repository."""
