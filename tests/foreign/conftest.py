from tests.tiny import own_bundle, tiny_bundle

__all__ = ["own_bundle", "tiny_bundle"]
