"""The contract refuses what it cannot mean, in a sentence of bounded length."""

from __future__ import annotations

import pytest

from dpt_deploy.core.contract import Contract
from dpt_deploy.core.errors import BadInput


@pytest.mark.parametrize("field", [{"heads": ("x" * 5000,)}, {"resize": "x" * 5000}, {"depth": "x" * 5000}],
                         ids=lambda field: next(iter(field)))
def test_a_long_value_from_a_file_is_not_printed_whole(field: dict) -> None:
    with pytest.raises(BadInput, match=f"{next(iter(field))}: expected .* received") as caught:
        Contract(**field)
    assert len(str(caught.value)) < 250


def test_a_contract_has_a_head() -> None:
    with pytest.raises(BadInput, match="received nothing"):
        Contract(heads=())
