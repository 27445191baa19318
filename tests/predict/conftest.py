from tests.tiny import canonical_bundle, own_bundle, tiny_bundle

__all__ = ["canonical_bundle", "own_bundle", "tiny_bundle"]
