"""Random crops and flips of images, another for every row, drawn from the seed and the step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it

from rankc.errors import RecipeError
from rankc.recipe_training import Augment

Tensor = torch.Tensor
_AUGMENT = 3  # what numbers are drawn for


def augmented(
    feeds: Mapping[str, Tensor], settings: Augment, seed: int, step: int
) -> dict[str, Tensor]:
    """Every input of four axes changed, the others as they are.

    Args:
        feeds: by input name, images being (rows, channels, height, width).
        settings: how.
        seed: with `step` all that the draw depends on, so that nothing has to be kept of it.
        step: of the training.

    Raises:
        RecipeError: no input has images.
    """
    if not any(tensor.dim() == 4 for tensor in feeds.values()):
        told = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in feeds.items())
        raise RecipeError(
            f"train.augment changes images, (rows, channels, height, width), and the model takes "
            f"{told}; leave it out"
        )
    rng = np.random.default_rng([_AUGMENT, seed, step])
    return {
        name: _changed(tensor, settings, rng) if tensor.dim() == 4 else tensor
        for name, tensor in feeds.items()
    }


def _changed(image: Tensor, settings: Augment, rng: np.random.Generator) -> Tensor:
    rows, _, height, width = image.shape
    pad, device = settings.pad, image.device
    top, left = torch.from_numpy(rng.integers(0, 2 * pad + 1, (2, rows))).to(device)
    flipped = torch.from_numpy(rng.integers(0, 2, rows) == 1).to(device)
    y = top[:, None] + torch.arange(height, device=device)
    x = left[:, None] + torch.arange(width, device=device)
    if settings.flip:
        x = torch.where(flipped[:, None], x.flip(1), x)
    if not pad and not settings.flip:
        return image
    bordered = F.pad(image, (pad, pad, pad, pad), value=settings.fill) if pad else image
    # Rows first, then columns: two gathers, and no index of every pixel.
    channels, wide = bordered.shape[1], bordered.shape[3]
    lines = bordered.gather(2, y[:, None, :, None].expand(rows, channels, height, wide))
    return lines.gather(3, x[:, None, None, :].expand(rows, channels, height, width))
