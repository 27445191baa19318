"""The network: timm ViT backbone, DPT decoder, three heads (PyTorch)."""

from .checkpoint import Checkpoint, load_model, read_checkpoint, save_checkpoint
from .dpt import ModelConfig, MultiTaskDPT, create_multitask_dpt_model

__all__ = [
    "Checkpoint",
    "ModelConfig",
    "MultiTaskDPT",
    "create_multitask_dpt_model",
    "load_model",
    "read_checkpoint",
    "save_checkpoint",
]
