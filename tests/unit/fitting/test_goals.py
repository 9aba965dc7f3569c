# SPDX-License-Identifier: Apache-2.0
"""What layers are fitted to, and the ridges that are tried."""

import pytest
import torch
from torch import nn

from seams import PendingLayer, bias_like, layer_tasks, ridges_to_try, wanted_outputs, wanted_weight
from slimrank.plan import Plan, Step, structure_of
from slimrank.records import ChannelMap, Cost, Setting
from specs import linear


def _pending(original: nn.Module, current: nn.Module, *, is_changed: bool) -> PendingLayer:
    structure = structure_of([linear("fc", 3, 4)], ChannelMap(groups={}, tensors={}))
    setting = Setting(method="weight_svd", form="linear", rank=1)
    step = Step(structure=structure, layers={"fc": (setting,)}, groups={})
    plan = Plan(steps=(step,), before=Cost(macs=12, params=15, bytes=60), has_bias=True)
    return PendingLayer(
        task=layer_tasks(plan)["fc"], original=original, current=current, is_changed=is_changed
    )


@pytest.mark.parametrize(
    ("least", "n_rows", "ridges"),
    [
        # Rows in plenty: one more than the least is enough.
        (1e-3, 20 * 8, (1e-3, 1e-2)),
        (1e-3, 20 * 8 - 1, (1e-3, 1e-2, 1e-1)),
        (5e-2, 20 * 8, (5e-2, 1e-1)),
        (1.0, 1, (1.0,)),
    ],
)
def test_more_ridges_are_tried_where_rows_are_few(
    least: float, n_rows: int, ridges: tuple[float, ...]
) -> None:
    assert ridges_to_try(least, n_rows, 8) == ridges


def test_no_bias_counts_as_zeros() -> None:
    like = torch.ones(3, 4, dtype=torch.float64)
    layer = nn.Linear(4, 3)
    assert torch.equal(bias_like(layer, like), layer.bias.detach().double())
    assert torch.equal(bias_like(nn.Linear(4, 3, bias=False), like), torch.zeros(3, dtype=torch.float64))


def test_outputs_of_the_original_are_wanted(rng: torch.Generator) -> None:
    original, current = nn.Linear(4, 3), nn.Linear(4, 3)
    rows, rows_hat = torch.randn(2, 5, 4, generator=rng)
    layer = _pending(original, current, is_changed=False)
    with torch.no_grad():
        torch.testing.assert_close(wanted_outputs(layer, rows, rows_hat), original(rows))
        torch.testing.assert_close(wanted_weight(layer), original.weight.double())


def test_a_changed_layer_is_fitted_to_its_own_outputs(rng: torch.Generator) -> None:
    original, current = nn.Linear(4, 3), nn.Linear(4, 3)
    rows, rows_hat = torch.randn(2, 5, 4, generator=rng)
    layer = _pending(original, current, is_changed=True)
    with torch.no_grad():
        torch.testing.assert_close(wanted_outputs(layer, rows, rows_hat), current(rows_hat))
