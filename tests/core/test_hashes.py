"""Maps of hashed texts answer as dictionaries do."""

from __future__ import annotations

import numpy as np

from dpt_deploy.core.hashes import Hashes, hashed


def test_a_map_of_many_hashes_answers_as_a_dictionary() -> None:
    found, truth = Hashes(), {}
    for key, value in np.random.default_rng(0).integers(0, 250_000, (400_000, 2)).tolist():
        found.put(hashed(str(key)), value)
        truth[hashed(str(key))] = value
    assert all(found.get(key) == value for key, value in list(truth.items())[::37])
    assert hashed("nothing") not in found
