# SPDX-License-Identifier: Apache-2.0
"""Products of torch.einsum that run as elementwise products."""

import pytest
import torch
from torch import Tensor

from slimrank.forward import SingleSums


@pytest.mark.parametrize(
    ("equation", "shapes", "macs"),
    [
        ("bdn,bn->bd", [(4, 5, 1), (4, 1)], 20),
        ("bdn,bn->bd", [(4, 5, 2), (4, 2)], 0),
        ("bd,dn", [(4, 1), (1, 3)], 12),
        ("b d, d n -> b n", [(4, 1), (1, 3)], 12),
        ("...d,dn->...n", [(2, 4, 1), (1, 3)], 24),
        ("bd,bn->bdn", [(4, 5), (4, 3)], 0),
        ("bde,de->b", [(4, 1, 2), (1, 2)], 0),
        ("bdx,dn->bn", [(4, 1, 7), (1, 3)], 12),
        ("bd->b", [(4, 1)], 0),
        ("ab,bc,cd->ad", [(2, 1), (1, 3), (3, 2)], 0),
    ],
)
def test_products_over_a_single_index_are_told(
    equation: str, shapes: list[tuple[int, ...]], macs: int
) -> None:
    seen: list[tuple[Tensor, int]] = []
    operands = [torch.ones(shape) for shape in shapes]
    with SingleSums(lambda result, count: seen.append((result, count))):
        expected = torch.einsum(equation, *operands)
        torch.einsum(equation, operands)
    assert [count for _, count in seen] == ([macs, macs] if macs else [])
    assert all(result.shape == expected.shape for result, _ in seen)
