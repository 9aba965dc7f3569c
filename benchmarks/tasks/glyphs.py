# SPDX-License-Identifier: Apache-2.0
"""The pictures of the benchmark: glyphs with clutter and noise, test fonts unseen in training.

``data/glyphs.npz`` holds the ink of every picture, 16 grey levels, two pixels a byte; paper, light and
noise are drawn from a seed when the pictures are taken, so the file stays small.
"""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor

from examples.train_demo import SIDE, photograph
from slimrank.demo._glyphnet import normalised

DATA = Path(__file__).parent / "data"
LEVELS = 15
Shift = Literal["none", "fonts", "noise", "digits", "static"]


def round_ink(ink: NDArray[np.float64]) -> NDArray[np.float64]:
    """The ink in 16 levels, as it is stored.

    Args:
        ink: any shape, 0 to 1.

    Returns:
        Same shape.
    """
    return np.round(ink * LEVELS) / LEVELS


def pack(ink: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Two pixels a byte.

    Args:
        ink: (S, 32, 32), in 16 levels from 0 to 1.

    Returns:
        (S, 512).
    """
    pixels = np.round(ink * LEVELS).astype(np.uint8).reshape(len(ink), -1)
    return pixels[:, 0::2] << 4 | pixels[:, 1::2]


def unpack(packed: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The other way of ``pack``.

    Args:
        packed: (S, 512).

    Returns:
        (S, 32, 32), 0 to 1.
    """
    pixels = np.stack([packed >> 4, packed & 15], axis=-1).reshape(len(packed), SIDE, SIDE)
    return pixels / LEVELS


def _photographs(ink: NDArray[np.float64], seed: int) -> Tensor:
    rng = np.random.default_rng(seed)
    return normalised(np.stack([photograph(picture, rng) for picture in ink]))


def test_set() -> tuple[Tensor, Tensor]:
    """Pictures in fonts that no training picture uses, with labels.

    Returns:
        (10011, 1, 32, 32) float32, normalised, and (10011,) int64: 213 of each of 47 classes.
    """
    with np.load(DATA / "glyphs.npz") as file:
        return _photographs(unpack(file["test"]), 1), torch.from_numpy(file["test_labels"].astype(np.int64))


def labelled_set(count: int = 2000) -> tuple[Tensor, Tensor]:
    """Labelled pictures in training fonts, not among the training or calibration pictures: for AIMET.

    Args:
        count: at most 2048.

    Returns:
        (count, 1, 32, 32) float32 and (count,) int64.
    """
    with np.load(DATA / "glyphs.npz") as file:
        ink, labels = file["labelled"][:count], file["labelled_labels"][:count]
    return _photographs(unpack(ink), 2), torch.from_numpy(labels.astype(np.int64))


def calibration_set(count: int = 512, seed: int = 0, shift: Shift = "none") -> list[Tensor]:
    """Unlabelled pictures in training fonts, not among the training pictures.

    Args:
        count: at most 4096 (1024 with ``shift="fonts"``).
        seed: which of the pictures, and the noise on them.
        shift: "none"; "fonts": the test's fonts, other pictures; "noise": four times the noise;
            "digits": scikit-learn's handwritten digits, enlarged; "static": noise and nothing else.

    Returns:
        Batches of 64: (64, 1, 32, 32) float32, normalised.

    Raises:
        ValueError: more pictures than there are.
    """
    rng = np.random.default_rng([seed, 3])
    if shift == "static":
        return list(torch.from_numpy(rng.standard_normal((count, 1, SIDE, SIDE), np.float32)).split(64))
    if shift == "digits":
        small = load_digits().images[rng.permutation(1797)[:count]] / 16
        ink = np.pad(np.kron(small, np.ones((3, 3))), ((0, 0), (4, 4), (4, 4)))
    else:
        with np.load(DATA / "glyphs.npz") as file:
            packed = file["other_fonts" if shift == "fonts" else "calibration"]
        if count > len(packed):
            raise ValueError(f"{count} pictures asked, there are {len(packed)}")
        ink = unpack(packed[rng.permutation(len(packed))[:count]])
    if len(ink) < count:
        raise ValueError(f"{count} pictures asked, there are {len(ink)}")
    images = _photographs(ink, seed + 100)
    if shift == "noise":
        images = images + 0.5 * torch.from_numpy(rng.standard_normal(images.shape, np.float32))
    return list(images.split(64))
