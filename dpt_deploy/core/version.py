"""The version, for the package, manifests and the build."""

__version__ = "0.1.0"
