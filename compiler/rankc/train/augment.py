"""Rows changed at random, others in every step: crops and flips of images, mixed columns."""

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
    """Images cropped and flipped, columns mixed between rows.

    Args:
        feeds: by input name, images being (rows, channels, height, width), columns (rows,) or
            (rows, columns), ids where they are integers.
        settings: how.
        seed: with `step` all that the draw depends on, so that nothing has to be kept of it.
        step: of the training.

    Raises:
        RecipeError: no input has what is to be changed.
    """
    _require(feeds, settings)
    rng = np.random.default_rng([_AUGMENT, seed, step])
    changed = dict(feeds)
    for name, tensor in feeds.items():
        if tensor.dim() == 4:
            changed[name] = _blended(_changed(tensor, settings, rng), settings.mix, rng)
        elif tensor.dim() in (1, 2) and settings.mix:
            changed[name] = _mixed(tensor, settings.mix, rng)
    return changed


def _require(feeds: Mapping[str, Tensor], settings: Augment) -> None:
    axes = {tensor.dim() for tensor in feeds.values()}
    told = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in feeds.items())
    if (settings.pad or settings.flip) and 4 not in axes:
        raise RecipeError(
            f"augment: pad and flip change images, (rows, channels, height, width), and the model "
            f"takes {told}; leave them out"
        )
    if settings.mix and not axes & {1, 2, 4}:
        raise RecipeError(
            f"augment: mix changes columns, (rows,) or (rows, columns), and images, and the model "
            f"takes {told}; leave it out"
        )


def _blended(image: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Some images blended with one another's, by any share of either."""
    if not share:
        return image
    rows = len(image)
    weight = np.where(rng.random(rows) < share, rng.random(rows), 1.0).reshape(rows, 1, 1, 1)
    kept = torch.from_numpy(weight).to(image)
    other = image[torch.from_numpy(rng.permutation(rows)).to(image.device)]
    return kept * image + (1.0 - kept) * other


def _mixed(tensor: Tensor, share: float, rng: np.random.Generator) -> Tensor:
    """Some ids of every row from other rows, a column from a row; numbers of a row together."""
    columns = tensor if tensor.dim() == 2 else tensor[:, None]
    if columns.is_floating_point():
        drawn = rng.random(len(columns)) < share
        source = np.where(drawn, rng.permutation(len(columns)), np.arange(len(columns)))
        return tensor[torch.from_numpy(source).to(tensor.device)]
    shape = tuple(columns.shape)
    of_row = 2 * share * rng.random((shape[0], 1))  # some rows are changed much, others little
    drawn = rng.random(shape) < of_row
    source = np.where(drawn, rng.integers(0, shape[0], shape), np.arange(shape[0])[:, None])
    found = columns.gather(0, torch.from_numpy(source).to(tensor.device))
    return found if tensor.dim() == 2 else found[:, 0]


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
