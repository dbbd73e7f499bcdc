"""A small residual network for 8 by 8 images."""

from __future__ import annotations

import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
import torch.nn.functional as F  # noqa: N812, TID253
from torch import nn  # noqa: TID253

WIDTHS = (32, 64, 64)
INK = 16.0  # the darkest pixel


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the input, or a 1x1 convolution of it.

    K. He et al., "Deep residual learning for image recognition", CVPR 2016; "option B".
    """

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != width:
            conv = nn.Conv2d(inner, width, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, inner, height, width) to (rows, width, height / stride, width / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class DigitsNet(nn.Module):
    """Pixels in 0..16, (rows, 1, 8, 8), to logits (rows, 10); scaling is part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        self.stage1 = Block(WIDTHS[0], WIDTHS[0], 1)
        self.stage2 = Block(WIDTHS[0], WIDTHS[1], 2)
        self.stage3 = Block(WIDTHS[1], WIDTHS[2], 2)
        self.linear = nn.Linear(WIDTHS[2], 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        x = F.relu(self.bn(self.conv(image / INK)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: torch.Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits
