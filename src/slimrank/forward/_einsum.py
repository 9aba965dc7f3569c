# SPDX-License-Identifier: Apache-2.0
"""Products of ``torch.einsum`` that sum over a single index: torch runs them as elementwise products."""

from collections.abc import Callable, Mapping
from math import prod

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_Shape = tuple[int, ...]


class SingleSums(TorchFunctionMode):
    """Sees every product of two tensors by ``torch.einsum`` that is a matrix product at any other width.

    Where all that it sums over has size 1, torch runs no product that a counter sees.
    """

    def __init__(self, note: Callable[[Tensor, int], None]) -> None:
        """Takes what to do.

        Args:
            note: called with the result and the multiplications of each such product, after it has run.
        """
        super().__init__()
        self._note = note

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs everything as it is."""
        result = func(*args, **(kwargs or {}))
        if func is torch.einsum and isinstance(result, Tensor) and args and isinstance(args[0], str):
            operands = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
            shapes = [tuple(operand.shape) for operand in operands if isinstance(operand, Tensor)]
            macs = single_sum_macs(args[0], shapes)
            if macs:
                self._note(result, macs)
        return result


def single_sum_macs(equation: str, shapes: list[_Shape]) -> int:
    """Multiplications of a product that sums over nothing but dimensions of size 1.

    Args:
        equation: as ``torch.einsum`` takes it.
        shapes: of its operands.

    Returns:
        How many; 0 where it sums over nothing, or over more, or where there are not two operands.
    """
    given, arrow, wanted = equation.replace(" ", "").partition("->")
    terms = given.split(",")
    if len(terms) != 2 or len(shapes) != 2:
        return 0
    (first, rest), (second, other_rest) = (
        _sizes(term, shape) for term, shape in zip(terms, shapes, strict=True)
    )
    if not arrow:
        letters = given.replace(".", "").replace(",", "")
        wanted = "".join(sorted(letter for letter in letters if letters.count(letter) == 1))
    summed = (first.keys() & second.keys()) - set(wanted)
    if not summed or any(first[letter] > 1 and second[letter] > 1 for letter in summed):
        return 0
    # What only one operand has and nobody wants is summed before the product.
    alone = (first.keys() ^ second.keys()) - set(wanted)
    sizes = {
        letter: max(first.get(letter, 1), second.get(letter, 1))
        for letter in (first.keys() | second.keys()) - alone - summed
    }
    return prod(sizes.values()) * int(prod(torch.broadcast_shapes(rest, other_rest)))


def _sizes(term: str, shape: _Shape) -> tuple[dict[str, int], _Shape]:
    """Sizes by letter, and those that an ellipsis stands for."""
    before, dots, after = term.partition("...")
    end = len(shape) - len(after) if dots else len(before)
    sizes = dict(zip(before, shape, strict=False)) | dict(zip(after, shape[end:], strict=False))
    return sizes, shape[len(before) : end]
