"""The description in a checkpoint, validated: nothing in it can make timm open a file or an address."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.contract import HEADS, Contract
from ..core.errors import BadCheckpoint, BadInput
from .dpt import DESCRIPTION_KEY, ModelConfig
from .names import without_insertion

MAX_BYTES = 1_000_000


def _whole(low: int, high: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _number(low: float, high: float) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high
    return check


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _size(value: Any) -> bool:
    edge = _whole(8, 8192)
    return edge(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(edge, value)))


ARCHITECTURE: dict[str, Callable[[Any], bool]] = {
    "img_size": _size, "patch_size": _whole(2, 64), "depth": _whole(4, 64), "embed_dim": _whole(16, 4096),
    "num_heads": _whole(1, 128), "mlp_ratio": _number(0.25, 16), "reg_tokens": _whole(0, 64),
    "init_values": lambda value: value is None or _number(0, 10)(value),
    **dict.fromkeys(("qkv_bias", "qk_norm", "class_token", "no_embed_class", "pre_norm", "final_norm", "fc_norm",
                     "dynamic_img_size", "dynamic_img_pad", "reg_tokens_first"), _flag),
    **dict.fromkeys(("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate",
                     "drop_path_rate"), _number(0, 1)),
}
"""The arguments of timm that a file may give, each with the check of its value."""
NOT_NEEDED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
"""Where pretrained weights came from: of no use in a checkpoint, and never passed on."""


def read_description(
    path: Path, metadata: Mapping[str, Any], prefix: str = ""
) -> tuple[ModelConfig, Contract, dict[str, Any], tuple[str, ...]] | None:
    """Model, contract, training record and what the writer did not know; None if the metadata have no description.

    Of several models in one state dict, the one under `prefix` counts. Raises `BadCheckpoint` if it is not valid.
    """
    texts = {without_insertion(str(module)): entry[DESCRIPTION_KEY] for module, entry in metadata.items()
             if isinstance(entry, Mapping) and DESCRIPTION_KEY in entry}
    text = texts.get(prefix.rstrip("."), next(iter(texts.values()), None))
    if text is None:
        return None
    try:
        if not isinstance(text, str) or len(text) > MAX_BYTES:
            raise ValueError("it is not a text of at most 1 MB")
        value = json.loads(text)
        if not isinstance(value, dict) or not {"model", "contract"} <= set(value):
            raise ValueError("it lacks model or contract")
        training, assumed = value.get("training") or {}, value.get("assumed") or []
        if not isinstance(training, dict) or not isinstance(assumed, list):
            raise ValueError("training is not an object, or assumed is not a list")
        config = _model_config(value["model"])
        contract = Contract.from_json(value["contract"])
    except (ValueError, TypeError, RecursionError, BadInput) as error:
        raise BadCheckpoint(f"{path}: its description is not valid: {error}. Save the checkpoint again.") from error
    return config, contract, training, tuple(str(name) for name in assumed)


def _model_config(value: Any) -> ModelConfig:
    """The model's configuration. Raises `ValueError` or `BadInput`."""
    checks: dict[str, Callable[[Any], bool]] = {
        "backbone": lambda name: isinstance(name, str) and 0 < len(name) < 200,
        "features": lambda number: _whole(2, 4096)(number) and number % 2 == 0,
        "use_bn": _flag, "depth_scale": _number(1e-9, 1e9), "backbone_kwargs": lambda one: isinstance(one, dict),
        "heads": lambda one: isinstance(one, list) and all(isinstance(head, str) for head in one),
    }
    if not isinstance(value, dict):
        raise ValueError("model is not an object")
    for name, check in checks.items():
        if name in value and not check(value[name]):
            raise ValueError(f"model.{name} is {_short(value[name])}")
    if "://" in value.get("backbone", "") or "hf-hub:" in value.get("backbone", "") or "/" in value.get("backbone", ""):
        raise ValueError(f"model.backbone is {_short(value['backbone'])}, and no name of a timm model")
    kwargs = {key: item for key, item in value.get("backbone_kwargs", {}).items() if key not in NOT_NEEDED}
    check_architecture("model.backbone_kwargs", kwargs)
    return ModelConfig.from_json({"heads": list(HEADS)} | value | {"backbone_kwargs": kwargs})


def check_architecture(where: str, kwargs: Mapping[str, Any]) -> None:
    """Raise `BadInput`, naming `where`, for an option that is not architectural or a value outside its range."""
    for key, value in kwargs.items():
        if key not in ARCHITECTURE:
            raise BadInput(f"{where}: expected names among {', '.join(ARCHITECTURE)}, received {_short(key)}.")
        if not ARCHITECTURE[key](value):
            raise BadInput(f"{where}: {key} cannot be {_short(value)}.")


def _short(value: Any) -> str:
    return repr(value)[:80]
