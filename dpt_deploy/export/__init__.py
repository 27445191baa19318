"""Checkpoint -> bundle: the one place where model and runtime meet. `pipeline.export` is the whole of it."""
