# SPDX-License-Identifier: Apache-2.0
"""Rows of a layer: summed, thinned out, joined."""

import pytest
import torch
from torch import Tensor

from seams import Gathered, Rows, thinned_rows
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


@pytest.mark.parametrize(
    ("limit", "left"), [(100, [7, 3]), (10, [7, 3]), (6, [7, 3]), (5, [4, 2]), (3, [3, 1]), (1, [1, 1])]
)
def test_at_most_twice_the_limit_is_left(limit: int, left: list[int], rng: torch.Generator) -> None:
    parts = [_rows(torch.randn(count, 3, generator=rng)) for count in (7, 3)]
    thinned = thinned_rows(parts, limit)
    assert [len(rows.inputs) for rows in thinned] == left
    step = 10 // limit or 1
    for part, rows in zip(parts, thinned, strict=True):
        assert torch.equal(rows.inputs, part.inputs[::step])
        assert torch.equal(rows.outputs, 2 * rows.inputs[:, :2])
        assert torch.equal(rows.offsets, -rows.inputs[:, :2])


def test_no_batch_has_no_rows() -> None:
    assert thinned_rows([], 5) == ()


@pytest.mark.parametrize("sum_original", [True, False])
def test_rows_are_summed_in_both_models(sum_original: bool, rng: torch.Generator) -> None:
    gathered = _gathered(is_clipped=False)
    x = torch.randn(6, 3, generator=rng)
    gathered.add(x if sum_original else None, _rows(x + 1), step=1)
    assert gathered.joint_sums.n_rows == 6
    assert gathered.original_sums.n_rows == (6 if sum_original else 0)
    assert gathered.rows == []
    torch.testing.assert_close(gathered.joint_sums.moments().mean, (x + 1).double().mean(0))


def test_behind_a_clipping_some_rows_are_kept_as_copies(rng: torch.Generator) -> None:
    gathered = _gathered(is_clipped=True)
    x = torch.randn(7, 3, generator=rng)
    gathered.add(None, _rows(x), step=3)
    (kept,) = gathered.rows
    assert torch.equal(kept.inputs, x[[0, 3, 6]])
    assert torch.equal(kept.outputs, 2 * x[[0, 3, 6], :2])
    assert kept.inputs.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()
