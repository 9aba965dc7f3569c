# SPDX-License-Identifier: Apache-2.0
"""A model and its data as the command line wants them: functions without arguments.

From the repository root::

    slimrank compress examples/own_model.py:build examples/own_model.py:loader \
        --inputs examples/own_model.py:images_only --macs 0.5 --out compressed

Put your own model, weights and images in their place.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


def build() -> nn.Module:
    """The trained model; here an untrained one, so that the example needs no file."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
    )
    # model.load_state_dict(torch.load("weights.pt", weights_only=True))
    return model


def loader() -> DataLoader[tuple[Tensor, ...]]:
    """Batches of images and labels, as training code has them; unshuffled, so that every pass is the same."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(256, 3, 32, 32, generator=generator)
    return DataLoader(TensorDataset(images, torch.zeros(256, dtype=torch.long)), batch_size=32)


def images_only(batch: list[Tensor]) -> Tensor:
    """The inputs of the model; the labels are not used."""
    return batch[0]
