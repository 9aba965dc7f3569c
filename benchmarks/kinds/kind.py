# SPDX-License-Identifier: Apache-2.0
"""What a kind of network is: how it is built and trained, what its outputs mean, how good it is."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).parent / "weights"
Family = Literal["categorical", "bernoulli", "gaussian"]
Inputs = Tensor | tuple[Tensor, ...] | Mapping[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of trained network.

    Attributes:
        name: short, in words with hyphens; also that of the weights' file.
        build: the network, untrained.
        loss: mean training loss over one batch that the function draws itself:
            ``loss(model, batch size, generator)``.
        inputs: unlabelled inputs as calibration uses them: ``inputs(number of samples, generator)``.
        measure: how good a network is at its job on drawn test samples, labels included, in the kind's own
            measure: ``measure(model, generator)``.
        measured: name and unit of that measure ("top-1 accuracy, %", "PSNR, dB", "mean error, px").
        higher_is_better: of that measure.
        right: the family of every output, by its path; "" for a bare tensor.
        harmless: families that lose next to nothing beside the right one, by path.
        steps, batch, lr: of the training with Adam.
        macs: keep ratio at which it is compressed.
        n_samples: calibration samples.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, int, torch.Generator], Tensor]
    inputs: Callable[[int, torch.Generator], Inputs]
    measure: Callable[[nn.Module, torch.Generator], float]
    measured: str
    higher_is_better: bool
    right: Mapping[str, Family]
    harmless: Mapping[str, Sequence[Family]] = field(default_factory=dict)
    steps: int = 600
    batch: int = 32
    lr: float = 2e-3
    macs: float = 0.6
    n_samples: int = 256

    @property
    def path(self) -> Path:
        """Of the trained weights, in float16."""
        return WEIGHTS / f"{self.name}.safetensors"

    def load(self) -> nn.Module:
        """The trained network, in eval mode."""
        torch.manual_seed(0)
        model = self.build()
        # Loading brings every tensor to the type it has in the network.
        model.load_state_dict(load_file(self.path))
        return model.eval()

    def batches(self, seed: int = 1, size: int = 32) -> list[Inputs]:
        """Calibration batches."""
        generator = torch.Generator().manual_seed(seed)
        return [self.inputs(size, generator) for _ in range(self.n_samples // size)]

    def score(self, model: nn.Module, seed: int = 2) -> float:
        """The kind's own measure of a network, on test samples that are the same for every network."""
        with torch.no_grad():
            return self.measure(model.eval(), torch.Generator().manual_seed(seed))

    def train(self, seed: int = 0) -> nn.Module:
        """Trains a network from a seed.

        Args:
            seed: of the first weights and of every sample.

        Returns:
            The network in eval mode, its weights as float16 holds them.
        """
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        model = self.build().train()
        optimizer = torch.optim.Adam(model.parameters(), self.lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, self.lr, total_steps=self.steps)
        for _ in range(self.steps):
            optimizer.zero_grad()
            self.loss(model, self.batch, generator).backward()
            optimizer.step()
            schedule.step()
        return model.half().float().eval()

    def write(self, model: nn.Module) -> None:
        """Keeps trained weights."""
        tensors = {
            key: value.half() if value.is_floating_point() else value
            for key, value in model.state_dict().items()
        }
        save_file(tensors, self.path)


def named(kinds: Iterable[Kind]) -> Mapping[str, Kind]:
    """Kinds by name.

    Raises:
        ValueError: two have the same.
    """
    by_name: dict[str, Kind] = {}
    for kind in kinds:
        if kind.name in by_name:
            raise ValueError(f"two kinds are called {kind.name}")
        by_name[kind.name] = kind
    return by_name
