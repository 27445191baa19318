"""Shared by every other part: errors, files, the contract, metrics, the manifest and the verdict."""
