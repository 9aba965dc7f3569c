# SPDX-License-Identifier: Apache-2.0
"""A trained network with everything that measuring it takes."""

from dataclasses import dataclass
from functools import cache

import safetensors.torch
import torch
from torch import Tensor, nn

import slimrank as sr
from benchmarks.tasks.glyphs import DATA, Shift, calibration_set, test_set
from benchmarks.tasks.networks import NETWORKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A network of ``NETWORKS`` on the glyphs.

    Attributes:
        name: key of ``NETWORKS``.
        skip: layers that no row compresses, as globs.
    """

    name: str
    skip: tuple[str, ...] = ()

    def model(self) -> nn.Module:
        """The trained network, a new object at every call, in eval mode."""
        model = NETWORKS[self.name]()
        model.load_state_dict(safetensors.torch.load((DATA / f"{self.name}.safetensors").read_bytes()))
        return model.eval()

    def budget(self, study: sr.Study, ratio: float) -> float:
        """Keep ratio of all MACs that leaves the given share of the compressible layers' MACs.

        Args:
            study: of the network.
            ratio: of all MACs, or, where layers are skipped, of the MACs of the others.

        Returns:
            For ``study.plan(macs=...)``.
        """
        if not self.skip:
            return ratio
        open_macs = sum(spec.macs for spec in study.layers if spec.methods)
        return 1 - (1 - ratio) * open_macs / study.before.macs

    def right(self, model: nn.Module) -> Tensor:
        """Which test pictures the network names right.

        Args:
            model: the network or what became of it.

        Returns:
            (10011,) bool.
        """
        images, labels = _test_set()
        model.eval()
        with torch.inference_mode():
            found = torch.cat([model(batch).argmax(1) for batch in images.split(256)])
        return found.eq(labels)

    def batches(self, count: int = 512, seed: int = 0, shift: Shift = "none") -> list[Tensor]:
        """Unlabelled calibration pictures; see ``calibration_set``."""
        return calibration_set(count, seed, shift)


TASKS = {
    # Of the transformer the Linear layers are compressed, as is usual; budgets mean their MACs.
    "vit": Task(name="vit", skip=("stem.*",)),
    **{name: Task(name=name) for name in ("vgg", "resnet", "mobilenet")},
}


@cache
def _test_set() -> tuple[Tensor, Tensor]:
    return test_set()


def paired_interval(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Points of accuracy lost, and the half width of the 95 % interval, both networks on the same pictures.

    Args:
        before: (S,) bool, right answers of the original.
        after: (S,) bool, of the other.

    Returns:
        Points lost (negative: won), and 1.96 standard errors of the mean difference.
    """
    difference = before.double() - after.double()
    return 100 * float(difference.mean()), 196 * float(difference.std() / len(difference) ** 0.5)


def accuracy_columns(before: Tensor, after: Tensor) -> dict[str, float]:
    """What every table tells of accuracy.

    Args:
        before: (S,) bool, right answers of the original.
        after: (S,) bool, of the other network.

    Returns:
        Percent before and after, points lost with the half width of their 95 % interval.
    """
    lost, interval = paired_interval(before, after)
    return {
        "accuracy_before": round(100 * float(before.double().mean()), 2),
        "accuracy_after": round(100 * float(after.double().mean()), 2),
        "points_lost": round(lost, 2),
        "interval_95": round(interval, 2),
    }
