"""Flips and crops of whole batches. No torch here."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def augment(
    image: NDArray[np.uint8], rng: np.random.Generator, *, pad: int, flip: bool
) -> NDArray[np.uint8]:
    """Each image flipped or not, then cropped at random from itself with a black border.

    Args:
        image: (rows, channels, height, width).
        rng: Draws flips and places.
        pad: Width of the border, pixels; 0 crops nothing.
        flip: Half of the images left to right.
    """
    rows, _, height, width = image.shape
    if flip:
        flipped = rng.integers(0, 2, (rows, 1, 1, 1)) == 1
        image = np.where(flipped, image[..., ::-1], image)
    bordered = np.pad(image, ((0, 0), (0, 0), (pad, pad), (pad, pad)))
    windows = np.lib.stride_tricks.sliding_window_view(bordered, (height, width), axis=(2, 3))
    top, left = rng.integers(0, 2 * pad + 1, (2, rows))
    return np.ascontiguousarray(windows[np.arange(rows), :, top, left])
