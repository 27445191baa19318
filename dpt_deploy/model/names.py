"""Find the names of a model's tensors under the names that wrappers gave them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from ..core.errors import BadCheckpoint

INSERTED = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What DataParallel, torch.compile, FSDP and activation checkpointing insert into names."""
ANCHOR = "backbone.patch_embed.proj.weight"
ROOTS = ("backbone.", "decoder.", "heads.")
COUNTERS = ("total_ops", "total_params")  # of thop, a profiler that registers buffers in every module
OTHERS = {
    "an official DPT or MiDaS checkpoint": ("pretrained.model.", "scratch."),
    "a Hugging Face DPT checkpoint": ("dpt.embeddings.", "dpt.encoder.", "neck.fusion_stage."),
    "a Depth Anything checkpoint": ("depth_head.", "pretrained.blocks."),
}
BACKBONES = ("patch_embed.proj.weight", "embeddings.patch_embeddings.projection.weight")


def without_insertions(
    path: Path, tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """The tensors without what wrappers inserted into their names, at any place, and notes.

    Raises `BadCheckpoint` if two tensors would get one name: they belong to two sets of weights.
    """
    found: dict[str, None] = {}
    origins: dict[str, str] = {}
    for key in tensors:
        found |= dict.fromkeys(part for part in key.split(".") if part in INSERTED)
        name = without_insertion(key)
        if name in origins:
            raise BadCheckpoint(f"{path}: {origins[name]} and {key} are two sets of weights in one state dict. Save "
                                "one of them: torch.save({key: value for key, value in state.items() if ...}, path).")
        origins[name] = key
    renamed = {name: tensors[key] for name, key in origins.items()}
    return renamed, [f"{part!r} removed from the names" for part in found]


def without_insertion(name: str) -> str:
    """A name without what wrappers inserted into it."""
    return ".".join(part for part in name.split(".") if part not in INSERTED)


def own_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], list[str], str]:
    """The tensors of the model alone, under its own names; notes on what was removed or dropped; and the prefix.

    The prefix is what precedes the patch embedding of the backbone.

    Raises:
        BadCheckpoint: There is no such model in the file. The message says what the file is, if that is known.
    """
    tensors, notes = without_insertions(path, tensors)
    anchors = [key for key in tensors if key == ANCHOR or key.endswith(f".{ANCHOR}")]
    prefixes = sorted((key.removesuffix(ANCHOR) for key in anchors), key=len)
    if not prefixes:
        raise BadCheckpoint(f"{path}: {_what_it_is(tensors)}")
    averaged = [prefix for prefix in prefixes if any(word in prefix for word in ("ema", "averaged", "teacher", "swa"))]
    prefix = (averaged or prefixes)[0]
    if prefix:
        notes.append(f"prefix {prefix!r} removed")
    if len(prefixes) > 1:
        others = ", ".join(repr(one) for one in prefixes if one != prefix)
        notes.append(f"the file also has the model under {others}")
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    kept = {key: value for key, value in own.items()
            if key.startswith(ROOTS) and key.rpartition(".")[2] not in COUNTERS}
    dropped = [key for key in tensors if not key.startswith(prefix) or key.removeprefix(prefix) not in kept]
    if dropped:
        more = ", ..." if len(dropped) > 4 else ""
        notes.append(f"{len(dropped)} tensors of something else dropped: {', '.join(dropped[:4])}{more}")
    return kept, notes, prefix


def _what_it_is(tensors: Mapping[str, torch.Tensor]) -> str:
    """What a file without our model holds, as a sentence."""
    for what, starts in OTHERS.items():
        if any(key.startswith(starts) or f".{starts[0]}" in key for key in tensors):
            return (f"this is {what}, which has one head instead of depth, normals and alpha. Training can start from "
                    "it: python -m train --init FILE")
    if any(key.endswith(BACKBONES) for key in tensors):
        return ("these are the weights of a backbone alone, without decoder and heads. Training can start from them: "
                "python -m train --backbone NAME")
    return another_architecture(tensors)


def another_architecture(keys: Collection[str]) -> str:
    """That a state dict with these keys is of another model, as a sentence."""
    return (
        "the checkpoint has another architecture: expected the keys of create_multitask_dpt_model() "
        f"({ANCHOR}, decoder.fusion.0.out.weight, heads.depth.conv3.weight, ...), received {len(keys)} keys such as "
        f"{', '.join(sorted(keys)[:4])}."
    )
