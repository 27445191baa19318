"""The main job on a small model that the repository carries: `make demo`."""
