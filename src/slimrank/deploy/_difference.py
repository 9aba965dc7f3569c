# SPDX-License-Identifier: Apache-2.0
"""How far a tensor is from the one that is expected."""

import math

import torch
from torch import Tensor


def largest_difference(expected: Tensor, found: Tensor) -> float:
    """Largest difference of two tensors of one shape; what is not finite in both alike does not differ."""
    if not expected.numel():
        return 0.0
    a, b = _as_double(expected), _as_double(found)
    same = (a == b) | (a.isnan() & b.isnan())
    return float((a - b).abs().nan_to_num(nan=math.inf, posinf=math.inf).where(~same, 0.0).max())


def relative_to(difference: float, largest: float) -> float:
    """A difference over the largest value; inf where all values are zero and there is a difference."""
    if difference == 0:
        return 0.0
    return difference / largest if largest else math.inf


def largest_of(tensor: Tensor) -> float:
    """Largest finite value, without its sign; 0 of an empty tensor."""
    finite = _as_double(tensor).abs().nan_to_num(nan=0.0, posinf=0.0)
    return float(finite.max()) if finite.numel() else 0.0


def _as_double(tensor: Tensor) -> Tensor:
    """Real numbers; both parts of complex ones."""
    return (torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor).double()


def relative_difference(expected: Tensor, found: Tensor) -> float:
    """Largest difference over the largest expected value; inf where shapes differ."""
    if expected.shape != found.shape:
        return math.inf
    return relative_to(largest_difference(expected, found), largest_of(expected))
