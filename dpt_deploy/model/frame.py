"""FrameModel: from a uint8 frame to maps of the frame's size, with pre- and post-processing as graph nodes."""

from __future__ import annotations

import torch
from torch import nn

from ..core.contract import Contract


class FrameModel(nn.Module):
    """A model with the contract's pre- and post-processing around it.

    Resizing is two matrix products, A_h X A_w^T. Their antialiased triangle-filter matrices are computed from the
    frame's shape, so that one graph accepts every frame size.
    """

    def __init__(self, model: nn.Module, contract: Contract, resize_dtype: torch.dtype = torch.float32) -> None:
        """`model` is a `MultiTaskDPT` with `contract.input_size`; `resize_dtype` is the dtype of the products."""
        super().__init__()
        self.model = model
        self.contract = contract
        self.resize_dtype = resize_dtype
        # RGB in [0, 255] -> (x / 255 - mean) / std, as one multiplication and one addition in float32.
        mean, std = torch.tensor(contract.mean), torch.tensor(contract.std)
        self.register_buffer("scale", (1.0 / (255.0 * std)).view(3, 1, 1), persistent=False)
        self.register_buffer("shift", (-mean / std).view(3, 1, 1), persistent=False)

    def forward(self, frame: torch.Tensor) -> dict[str, torch.Tensor]:
        """Predict the maps of `frame`, uint8 (N, H, W, 3) RGB.

        Returns, for the heads of the contract, float32 depth (N, H, W) [m], or without unit if the contract says
        relative, normals (N, H, W, 3) of unit length, and alpha (N, H, W) in [0, 1].
        """
        return self.after(frame, self.model(self.before(frame)))

    def before(self, frame: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, 3) RGB -> float32 (N, 3, h, w), the model's input."""
        n, h, w, _ = frame.shape
        input_h, input_w = self.contract.input_size
        box_h, box_w = self._box(h, w)
        x = frame.to(self.resize_dtype).reshape(n, h, w * 3)  # (N, H, W * 3)
        x = self._matrix(h, input_h, box_h) @ x  # (N, h, W * 3): rows first, because they are contiguous in memory
        x = x.reshape(n, input_h, w, 3).permute(0, 3, 1, 2)  # (N, 3, h, W)
        x = x @ self._matrix(w, input_w, box_w).T  # (N, 3, h, w)
        return x.float() * self.scale + self.shift

    def after(self, frame: torch.Tensor, maps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The model's outputs -> maps of the frame's size. Of `frame`, only the shape is used."""
        _, h, w, _ = frame.shape
        input_h, input_w = self.contract.input_size
        box_h, box_w = self._box(h, w)
        back_h, back_w = self._matrix_back(h, input_h, box_h), self._matrix_back(w, input_w, box_w)

        def to_frame(x: torch.Tensor) -> torch.Tensor:  # (N, C, h, w) -> (N, C, H, W)
            return (back_h @ (x.to(self.resize_dtype) @ back_w.T)).float()

        result = {}
        if "depth" in maps:
            result["depth"] = to_frame(maps["depth"])[:, 0]
        if "normals" in maps:
            normals = to_frame(maps["normals"]).permute(0, 2, 3, 1)  # (N, H, W, 3)
            length = normals.square().sum(dim=-1, keepdim=True).sqrt()
            result["normals"] = normals / length.clamp(min=1e-6)
        if "alpha_logits" in maps:
            # Sigmoid before the resize: coverage can be averaged linearly, logits cannot.
            result["alpha"] = to_frame(torch.sigmoid(maps["alpha_logits"]))[:, 0]
        return result

    def _box(self, h: int, w: int) -> tuple[tuple, tuple]:
        """(offset, extent) of the content in rows and in columns, the same as `contract.content_box`."""
        input_h, input_w = self.contract.input_size
        if self.contract.resize == "stretch":
            return (0, input_h), (0, input_w)
        height = torch.sym_max(1, torch.sym_min(input_h, (2 * h * input_w + w) // (2 * w)))
        width = torch.sym_max(1, torch.sym_min(input_w, (2 * w * input_h + h) // (2 * h)))
        return ((input_h - height) // 2, height), ((input_w - width) // 2, width)

    def _matrix(self, size: int, input_size: int, box: tuple) -> torch.Tensor:
        """Weights (input_size, size) that resize an axis of the frame to the input."""
        offset, extent = box
        position = torch.arange(input_size, device=self.scale.device)
        if self.contract.resize == "letterbox":  # padding repeats the edge of the content
            position = (position - offset).clamp(min=0)
            position = torch.minimum(position, torch.full_like(position, 1) * (extent - 1))
        return self._triangle(position, torch.arange(size, device=self.scale.device), size, extent)

    def _matrix_back(self, size: int, input_size: int, box: tuple) -> torch.Tensor:
        """Weights (size, input_size) that resize the content of a map to an axis of the frame."""
        offset, extent = box
        source = torch.arange(input_size, device=self.scale.device) - offset
        weights = self._triangle(torch.arange(size, device=self.scale.device), source, extent, size, normalise=False)
        if self.contract.resize == "letterbox":
            weights = weights * ((source >= 0) & (source < extent)).to(weights.dtype)
        return (weights / weights.sum(dim=1, keepdim=True)).to(self.resize_dtype)

    def _triangle(
        self, position: torch.Tensor, source: torch.Tensor, size_in: int, size_out: int, normalise: bool = True
    ) -> torch.Tensor:
        """Triangle-filter weights (len(position), len(source)) for resizing `size_in` to `size_out` pixels."""
        one = torch.ones(1, device=position.device)
        scale = (one * size_in) / (one * size_out)
        support = scale.clamp(min=1.0)
        centre = (position.float() + 0.5) * scale
        distance = (source.float()[None, :] + 0.5 - centre[:, None]).abs() / support
        weights = (1.0 - distance).clamp(min=0.0)
        if not normalise:
            return weights
        return (weights / weights.sum(dim=1, keepdim=True)).to(self.resize_dtype)
