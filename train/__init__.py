"""Training: `python -m train --data-root DIR`, and the commands check, prepare, evaluate and synthetic beside it."""
