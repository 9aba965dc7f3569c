# SPDX-License-Identifier: Apache-2.0
"""Functions told apart by what they do and hold, the same in every process."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from slimrank.tensors import describe


def test_functions_are_told_by_what_they_do() -> None:
    def outer(x: Tensor) -> object:
        return [x in {"b", "a"} for _ in (1, 2)]

    assert describe(lambda a, b: a - b) == describe(lambda a, b: a - b)
    assert describe(lambda a, b: a - b) != describe(lambda a, b: a + b)
    assert describe(nn.CrossEntropyLoss()) == describe(nn.CrossEntropyLoss())
    weighted = [nn.CrossEntropyLoss(weight=torch.tensor([1.0, w])) for w in (1.0, 2.0)]
    losses = [nn.CrossEntropyLoss(), nn.CrossEntropyLoss(label_smoothing=0.1), *weighted]
    assert len({describe(loss) for loss in losses}) == 4
    assert describe(torch.optim.SGD) == "torch.optim.sgd.SGD"
    half = functools.partial(torch.optim.SGD, momentum=0.5)
    assert describe(half) != describe(functools.partial(torch.optim.SGD, momentum=0.9))
    assert describe(None) == "None"
    # Neither addresses nor the order of a set, which differ from process to process.
    assert "0x" not in describe(outer)
    assert "frozenset" not in describe(outer)


def test_what_a_function_encloses_and_takes_by_default_tells_functions_apart() -> None:
    def scaled(weight: object) -> Callable[[Tensor], object]:
        return lambda x: (x, weight)

    def masked(x: Tensor, weight: float = 1.0, *, power: int = 2) -> Tensor:
        return (x * weight) ** power

    assert describe(scaled(1.0)) == describe(scaled(1.0))
    assert describe(scaled(1.0)) != describe(scaled(0.0))
    assert describe(scaled(torch.ones(2))) == describe(scaled(torch.ones(2)))
    assert describe(scaled(torch.ones(2))) != describe(scaled(torch.zeros(2)))
    assert describe(scaled({"a": [1, (2.0, None)]})) != describe(scaled({"a": [1, (2.5, None)]}))
    assert describe(functools.partial(masked, power=3)) != describe(functools.partial(masked, power=4))
    plain = describe(masked)
    masked.__defaults__ = (2.0,)
    assert describe(masked) != plain
    masked.__kwdefaults__ = {"power": 3}
    assert describe(masked) != plain


def test_methods_are_told_with_what_they_belong_to_and_objects_without_their_address() -> None:
    small, large = nn.Linear(2, 2), nn.Linear(3, 3)
    assert describe(small.forward) != describe(large.forward)
    held = object()
    told = describe(functools.partial(print, held))
    assert "0x" not in told
    assert "builtins.object" in told


def test_a_function_that_holds_itself_ends() -> None:
    def outer() -> Callable[[int], int]:
        def again(n: int) -> int:
            return again(n - 1) if n else 0

        return again

    assert describe(outer()) == describe(outer())
