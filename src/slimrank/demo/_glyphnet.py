# SPDX-License-Identifier: Apache-2.0
"""A small trained glyph classifier, and the images to calibrate and test it with."""

from importlib.resources import files
from io import BytesIO

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from slimrank._errors import OptionError

# Digits, capitals, and the small letters that do not look like their capitals, in the order of the logits.
CLASSES = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt"
# Shipped beside this file; written by examples/train_demo.py.
WEIGHTS_FILE = "glyphnet.safetensors"
IMAGES_FILE = "glyphs.npz"


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or c_in != c_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False),
                nn.BatchNorm2d(c_out),
            )

    def forward(self, x: Tensor) -> Tensor:
        """The block's output.

        Args:
            x: (N, C_in, H, W).

        Returns:
            (N, C_out, H / stride, W / stride), rounded up.
        """
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        out: Tensor = self.relu2(y + self.shortcut(x))
        return out


class GlyphNet(nn.Module):
    """A residual network of three stages for 32x32 grey images of 47 characters.

    The modules are plain ones of PyTorch, so the net stands for any small convolutional model.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
        )
        self.stage1 = nn.Sequential(ResidualBlock(16, 24, stride=2), ResidualBlock(24, 24, stride=1))
        self.stage2 = nn.Sequential(ResidualBlock(24, 48, stride=2), ResidualBlock(48, 48, stride=1))
        self.stage3 = nn.Sequential(ResidualBlock(48, 96, stride=2), ResidualBlock(96, 96, stride=1))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(96, len(CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes.

        Args:
            images: (N, 1, 32, 32) float32, as ``calibration_batches`` gives them.

        Returns:
            (N, 47) float32, not normalised; the classes stand in the order of ``CLASSES``.
        """
        x = self.stage3(self.stage2(self.stage1(self.stem(images))))  # (N, 96, 4, 4)
        logits: Tensor = self.head(self.pool(x).flatten(1))
        return logits


def build() -> GlyphNet:
    """The trained network, in eval mode, on the CPU.

    Returns:
        A new object at every call, so a caller may change it.
    """
    state = safetensors.torch.load(files("slimrank.demo").joinpath(WEIGHTS_FILE).read_bytes())
    # Made without storage: the random start would draw from the caller's global generator.
    with torch.device("meta"):
        model = GlyphNet()
    model.load_state_dict(state, assign=True)
    return model.requires_grad_().eval()


def calibration_batches(batch_size: int = 64) -> list[Tensor]:
    """Unlabelled images in the fonts the network was trained on, though not its training images.

    Args:
        batch_size: images in a batch, 1 or more; the last batch may hold fewer.

    Returns:
        512 images in all, each batch (N, 1, 32, 32) float32, normalised.

    Raises:
        OptionError: ``batch_size`` is below 1.
    """
    check_batch_size(batch_size)
    return list(torch.split(normalised(load_array("calibration")), batch_size))


def test_batches(batch_size: int = 250) -> list[tuple[Tensor, Tensor]]:  # noqa: PT028 (not a pytest test)
    """Labelled images in font families that the network has never seen.

    Args:
        batch_size: images in a batch, 1 or more; the last batch may hold fewer.

    Returns:
        2,021 images in all (43 of each class), shuffled: per batch, images (N, 1, 32, 32) float32,
        normalised, and labels (N,) int64 in 0..46.

    Raises:
        OptionError: ``batch_size`` is below 1.
    """
    check_batch_size(batch_size)
    images = normalised(load_array("test_images"))
    labels = torch.from_numpy(load_array("test_labels").astype(np.int64))
    return list(zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True))


def normalised(images: NDArray[np.uint8]) -> Tensor:
    """Grey levels as the network wants them.

    Args:
        images: (N, 32, 32) uint8.

    Returns:
        (N, 1, 32, 32) float32, -2 to 2.
    """
    return torch.from_numpy(images).unsqueeze(1).float().div(255).sub(0.5).div(0.25)


def load_array(name: str) -> NDArray[np.uint8]:
    """One array of the shipped images, by its name in the archive.

    Args:
        name: ``calibration``, ``test_images`` or ``test_labels``.

    Returns:
        (512, 32, 32), (2021, 32, 32) or (2021,) uint8.
    """
    stored = BytesIO(files("slimrank.demo").joinpath(IMAGES_FILE).read_bytes())
    with np.load(stored, allow_pickle=False) as archive:
        array: NDArray[np.uint8] = archive[name]
    return array


def check_batch_size(batch_size: int) -> None:
    """Refuse a batch size that gives no batch.

    Args:
        batch_size: as the caller gave it.

    Raises:
        OptionError: it is below 1.
    """
    if batch_size < 1:
        raise OptionError(f"demo: batch_size {batch_size} is below 1; give 1 or more, e.g. 64")
