# SPDX-License-Identifier: Apache-2.0
"""Peaks of activations against counts by hand, and against the memory that is alive while a network runs."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

import seams
from slimrank.forward import as_batch, named_tensors


def counted(model: nn.Module, x: Tensor) -> int:
    return seams.peak_activation_bytes(model.eval(), as_batch(x))


class Chain(nn.Module):
    """A wide map in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        x = self.first(x)
        x = x.relu()
        x = self.second(x)
        return x.relu()


class Shortcut(nn.Module):
    """What a shortcut holds is alive beside the maps of its block."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 6, 1)
        self.a, self.b = nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=inplace)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.clone())
        y = self.a(x)
        y = self.act(y)
        y = self.b(y)
        y = y + x
        del x
        return y.flatten(1).sum(1)


# Bytes of one channel of 10 by 10 numbers.
MAP = 4 * 100


@pytest.mark.parametrize(
    ("make", "channels"),
    [
        # The wide map and what relu makes of it.
        (Chain, 8 + 8),
        (lambda: Shortcut(inplace=False), 6 + 12 + 12),
        # In place relu needs nothing; the most is then held by the convolution after it, as by that before.
        (lambda: Shortcut(inplace=True), 6 + 12 + 6),
    ],
)
def test_peaks_are_those_counted_by_hand_and_those_of_the_memory_that_is_alive(
    make: Callable[[], nn.Module], channels: int
) -> None:
    model, x = make().eval(), torch.randn(1, 2, 10, 10)
    assert counted(model, x) == channels * MAP == alive(model, x)


class Alive(TorchDispatchMode):
    """Adds up the memory that tensors really hold after each operation; that of the inputs is not its own."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}
        self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
        given = {tensor.untyped_storage()._cdata for _, tensor in named_tensors((*args, kwargs or {}))}
        made = func(*args, **(kwargs or {}))
        for _, tensor in named_tensors(made):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.most = max(self.most, sum(size for ref, size in self.made.values() if not ref.expired()))
        return made


def alive(model: nn.Module, x: Tensor) -> int:
    """The most memory that is alive while a network runs whose forward holds on to nothing needlessly."""
    with torch.no_grad(), Alive() as mode:
        model(x)
    return mode.most


def test_views_weights_and_constants_take_nothing() -> None:
    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(50, 4))
            self.constant = torch.ones(1000)

        def forward(self, x: Tensor) -> Tensor:
            y = x.view(2, 4).t().t() @ self.weight.t()
            return y + self.constant[:50]

    # The copy of the input goes when the product is made: product and sum, of 2 by 50 numbers, are the most.
    assert counted(Views(), torch.randn(1, 8)) == 4 * (100 + 100)


def test_outputs_are_alive_to_the_end() -> None:
    class Many(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"early": x * 2, "late": (x * 3).exp().exp()}

    # The early output, and two of the late ones.
    assert counted(Many(), torch.randn(1, 10)) == 4 * 10 * 3


def test_sparse_tensors_are_passed_over() -> None:
    class Sparse(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix = torch.eye(8).to_sparse()

        def forward(self, x: Tensor) -> Tensor:
            return torch.sparse.mm(self.matrix, x.t()).relu()

    # Torch adds the product to zeros: the input, these and the product.
    assert counted(Sparse(), torch.randn(1, 8)) == 4 * 8 * 3


def test_places_tell_what_is_alive_where_and_who_made_it() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    sample = as_batch(torch.zeros(1, 4))
    found = seams.alive_by_place(net, sample, ["0", "1", "2"])
    assert max(alive.bytes for alive in found.values()) == seams.peak_activation_bytes(net, sample)
    inside = {place.module: alive for place, alive in found.items() if place.is_inside}
    assert {name: alive.bytes for name, alive in inside.items()} == {"0": 48, "1": 64, "2": 40}
    made = {place.module: n_bytes for place, n_bytes in inside["1"].made.items()}
    assert made == {"0": 32, "1": 32}
    assert list(inside) == ["0", "1", "2"]


def test_every_call_of_a_module_is_a_place() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x))

    found = seams.alive_by_place(Twice().eval(), as_batch(torch.zeros(1, 4)), ["layer"])
    assert [place.call for place in found if place.is_inside] == [0, 1]
