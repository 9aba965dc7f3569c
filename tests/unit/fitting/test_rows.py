# SPDX-License-Identifier: Apache-2.0
"""Rows of a layer: summed, thinned out, joined."""

import pytest
import torch
from torch import Tensor

from seams import Gathered, Rows, joined_rows
from slimrank.linalg import Clipping, MomentSums


def _rows(x: Tensor) -> Rows:
    """Rows whose outputs and offsets can be told from their inputs."""
    return Rows(inputs=x, outputs=2 * x[:, :2], offsets=-x[:, :2])


def _gathered(*, is_clipped: bool) -> Gathered:
    clipping = Clipping(gains=torch.ones(2), low=0.0, high=float("inf"))
    return Gathered(
        original_sums=MomentSums(3),
        joint_sums=MomentSums(3, other_width=2),
        clipping=clipping if is_clipped else None,
    )


def test_rows_of_batches_are_joined_in_order(rng: torch.Generator) -> None:
    parts = [_rows(torch.randn(count, 3, generator=rng)) for count in (4, 2)]
    joined = joined_rows(parts, None)
    assert joined is not None
    assert torch.equal(joined.inputs, torch.cat([part.inputs for part in parts]))
    assert torch.equal(joined.outputs, 2 * joined.inputs[:, :2])
    assert torch.equal(joined.offsets, -joined.inputs[:, :2])


@pytest.mark.parametrize(("limit", "left"), [(100, 10), (10, 10), (6, 10), (5, 5), (3, 4), (1, 1)])
def test_at_most_twice_the_limit_is_left(limit: int, left: int, rng: torch.Generator) -> None:
    joined = joined_rows([_rows(torch.randn(5, 3, generator=rng)) for _ in range(2)], limit)
    assert joined is not None
    assert len(joined.inputs) == len(joined.outputs) == len(joined.offsets) == left


def test_no_batch_has_no_rows() -> None:
    assert joined_rows([], None) is None


@pytest.mark.parametrize("sum_original", [True, False])
def test_rows_are_summed_in_both_models(sum_original: bool, rng: torch.Generator) -> None:
    gathered = _gathered(is_clipped=False)
    x = torch.randn(6, 3, generator=rng)
    gathered.add(x, _rows(x + 1), sum_original=sum_original, step=1)
    assert gathered.joint_sums.n_rows == 6
    assert gathered.original_sums.n_rows == (6 if sum_original else 0)
    assert gathered.rows == []
    torch.testing.assert_close(gathered.joint_sums.moments().mean, (x + 1).double().mean(0))


def test_inputs_that_differ_have_moved_for_good(rng: torch.Generator) -> None:
    gathered = _gathered(is_clipped=False)
    x = torch.randn(6, 3, generator=rng)
    gathered.add(x, _rows(x), sum_original=False, step=1)
    assert not gathered.has_moved
    gathered.add(x, _rows(x + 1e-3), sum_original=False, step=1)
    gathered.add(x, _rows(x), sum_original=False, step=1)
    assert gathered.has_moved


def test_behind_a_clipping_some_rows_are_kept_as_copies(rng: torch.Generator) -> None:
    gathered = _gathered(is_clipped=True)
    x = torch.randn(7, 3, generator=rng)
    gathered.add(x, _rows(x), sum_original=False, step=3)
    (kept,) = gathered.rows
    assert torch.equal(kept.inputs, x[[0, 3, 6]])
    assert torch.equal(kept.outputs, 2 * x[[0, 3, 6], :2])
    assert kept.inputs.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
