"""ResNet-20 for CIFAR-10, with parameters named as in a commonly shared set of trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch  # noqa: TID253 - the zoo trains; the compiler never imports this
import torch.nn.functional as F  # noqa: N812, TID253
from models.cifar.images import FolderError
from torch import nn  # noqa: TID253

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of pixels in [0, 1]
BLOCKS, WIDTHS = 3, (16, 32, 64)
PREFIX = "module."  # of weights saved from torch.nn.DataParallel


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters ("option A").

    Where channels double, the shortcut takes every second pixel and fills up with zero channels,
    half of them before and half after. K. He et al., "Deep residual learning for image
    recognition", CVPR 2016, section 4.2.
    """

    def __init__(self, inner: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride, self.fill = stride, (width - inner) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(rows, inner, height, width) to (rows, width, height / stride, width / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.fill:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.fill, self.fill))
        return F.relu(out + x)


class ResNet20(nn.Module):
    """Pixels in 0..255, (rows, 3, 32, 32), to logits (rows, 10); normalising is part of it."""

    offset: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("offset", 255 * torch.tensor(MEAN)[:, None, None], persistent=False)
        self.register_buffer("scale", 255 * torch.tensor(STD)[:, None, None], persistent=False)
        self.conv1 = nn.Conv2d(3, WIDTHS[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTHS[0])
        self.layer1 = _stage(WIDTHS[0], WIDTHS[0], 1)
        self.layer2 = _stage(WIDTHS[0], WIDTHS[1], 2)
        self.layer3 = _stage(WIDTHS[1], WIDTHS[2], 2)
        self.linear = nn.Linear(WIDTHS[2], 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Logits of images."""
        x = (image - self.offset) / self.scale
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: torch.Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


def _stage(inner: int, width: int, stride: int) -> nn.Sequential:
    first = Block(inner, width, stride)
    return nn.Sequential(first, *(Block(width, width, 1) for _ in range(BLOCKS - 1)))


def load(path: Path) -> ResNet20:
    """The network with a user's trained weights.

    Args:
        path: What `torch.save` wrote: a state dict, or a dict with one as "state_dict". Read with
            `weights_only=True`, so nothing in it can run.

    Raises:
        FolderError: The file can't be read, or its names or shapes are not this network's,
            or a number is not finite.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        state = saved.get("state_dict", saved)
        model = ResNet20()
        model.load_state_dict(_plain(state))
    except Exception as error:  # readers of spoilt or hostile files fail in every way
        told = f"{type(error).__name__}: {error}"
        raise FolderError(f"{path}: not the weights of this ResNet-20: {told}") from error
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise FolderError(f"{path}: weights are NaN or infinite")
    return model.eval()


def _plain(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Without DataParallel's prefix; `num_batches_tracked`, which old files lack, is 0."""
    plain = {name.removeprefix(PREFIX): value for name, value in state.items()}
    fresh = ResNet20().state_dict()
    tracked = {k: v for k, v in fresh.items() if k.endswith("num_batches_tracked")}
    return tracked | plain
