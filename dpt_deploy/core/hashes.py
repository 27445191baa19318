"""Sets and maps of millions of texts that take sixteen bytes each."""

from __future__ import annotations

import hashlib

import numpy as np

_RECENT = 1 << 17  # entries in a dictionary before they move into the arrays


def hashed(text: str) -> int:
    """64 bits of a hash of `text`. Among ten million texts, two share one with a chance of 3 in a million."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "little")


class Hashes:
    """A map from `hashed` texts to `hashed` texts, in arrays of 16 bytes an entry."""

    def __init__(self) -> None:
        self._recent: dict[int, int] = {}
        self._keys, self._values = np.empty(0, np.uint64), np.empty(0, np.uint64)

    def get(self, key: int) -> int | None:
        if (found := self._recent.get(key)) is not None:
            return found
        at = int(self._keys.searchsorted(np.uint64(key)))
        return int(self._values[at]) if at < len(self._keys) and int(self._keys[at]) == key else None

    def __contains__(self, key: int) -> bool:
        return self.get(key) is not None

    def put(self, key: int, value: int = 0) -> None:
        """Set an entry; the latest counts."""
        self._recent[key] = value
        if len(self._recent) >= _RECENT:
            self._settle()

    def _settle(self) -> None:
        recent = np.array(list(self._recent.items()), np.uint64)
        stays = ~np.isin(self._keys, recent[:, 0])
        keys = np.concatenate([self._keys[stays], recent[:, 0]])
        values = np.concatenate([self._values[stays], recent[:, 1]])
        order = keys.argsort()
        self._keys, self._values = keys[order], values[order]
        self._recent.clear()
