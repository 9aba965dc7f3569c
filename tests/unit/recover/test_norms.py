# SPDX-License-Identifier: Apache-2.0
"""Running statistics, estimated again."""

import pytest
import torch
from torch import Tensor, nn

from seams import reestimate_, running_norms
from slimrank.forward import Batch


def test_only_norms_with_statistics_are_found() -> None:
    model = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.BatchNorm2d(3, track_running_stats=False),
        nn.InstanceNorm2d(3, track_running_stats=True),
        nn.InstanceNorm2d(3),
        nn.LayerNorm(3),
    )
    assert running_norms(model) == (model[0], model[2])


def test_statistics_become_the_average_over_batches(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4, momentum=0.3), nn.Linear(4, 2)).eval()
    model[2].train()
    batches = [torch.randn(16, 4, generator=rng) * (i + 1) + i for i in range(5)]
    reestimate_(model, [Batch(args=(x,), kwargs={}) for x in batches])
    norm = model[1]
    torch.testing.assert_close(norm.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0))
    torch.testing.assert_close(norm.running_var, torch.stack([x.var(0) for x in batches]).mean(0))
    assert norm.momentum == 0.3
    assert [module.training for module in model] == [False, False, True]


def test_statistics_of_instance_norms_become_the_average_as_well(rng: torch.Generator) -> None:
    model = nn.Sequential(nn.InstanceNorm1d(4, track_running_stats=True)).eval()
    batches = [torch.randn(8, 4, 16, generator=rng) * (i + 1) + i for i in range(3)]
    reestimate_(model, [Batch(args=(x,), kwargs={}) for x in batches])
    torch.testing.assert_close(model[0].running_mean, torch.stack([x.mean((0, 2)) for x in batches]).mean(0))
    torch.testing.assert_close(
        model[0].running_var, torch.stack([x.var(2).mean(0) for x in batches]).mean(0), rtol=1e-4, atol=1e-4
    )


def test_a_failure_puts_modes_and_momenta_back() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4, momentum=0.3)).eval()
    with pytest.raises(ValueError, match="refuses"):
        reestimate_(model, [Batch(args=(torch.zeros(2, 9),), kwargs={})])
    assert model[0].momentum == 0.3
    assert not model[0].training


def test_nothing_runs_where_there_is_no_norm() -> None:
    class Never(nn.Module):
        def forward(self, _x: Tensor) -> Tensor:
            raise AssertionError

    reestimate_(Never(), [Batch(args=(torch.zeros(2, 9),), kwargs={})])
