from typing import Any

import numpy as np
import pytest

from dpt_deploy.report import panel
from tests.tiny import canonical_bundle, own_bundle, tiny_bundle

__all__ = ["canonical_bundle", "own_bundle", "tiny_bundle"]


@pytest.fixture
def panel_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that are drawn on panels from now on."""
    texts: list[str] = []
    draw = panel.draw_text

    def noted(picture: np.ndarray, text: str, *arguments: Any, **options: Any) -> None:
        texts.append(text)
        draw(picture, text, *arguments, **options)

    monkeypatch.setattr(panel, "draw_text", noted)
    return texts
