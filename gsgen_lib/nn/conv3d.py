"""3D convolutions: the residual block of dense voxel grids. Taught in notebook 09."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Block3d(nn.Module):
    """Two 3 x 3 x 3 convolutions with group norm, and a skip: (B, C, R, R, R) -> the same; starts as the identity.

    >>> import torch
    >>> x = torch.randn(1, 8, 4, 4, 4)
    >>> torch.equal(Block3d(8)(x), x)
    True
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, channels), nn.Conv3d(channels, channels, 3, 1, 1)
        self.norm2, self.conv2 = nn.GroupNorm(8, channels), nn.Conv3d(channels, channels, 3, 1, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
