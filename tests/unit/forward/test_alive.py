# SPDX-License-Identifier: Apache-2.0
"""What a forward holds at each layer, against counts by hand."""

import torch
from torch import Tensor, nn

from slimrank.forward import alive_bytes, as_batch

# Bytes of one channel of 8 by 8 numbers.
MAP = 4 * 64


class Skips(nn.Module):
    """The first map waits for the last layer, over any number of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 10, 1)
        self.between = nn.Sequential(*(nn.Conv2d(width, width, 1) for width in [10] * 5))
        self.last = nn.Conv2d(20, 3, 1)
        self.unused = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.stem(x)
        joined = torch.cat([first, self.between(first)], 1)
        del first
        result: Tensor = self.last(joined)
        return result


def test_a_map_that_waits_counts_at_every_layer_until_it_is_read() -> None:
    alive = alive_bytes(Skips(), as_batch(torch.randn(1, 2, 8, 8)), ["stem", "between.3", "last", "unused"])
    # Weights do not count; each forward works on a copy of its batch.
    assert alive == {
        "stem": (2 + 10) * MAP,
        # What waits, what the layer reads, and what it gives.
        "between.3": (2 + 10 + 10 + 10) * MAP,
        # Of the map that waited only the copy is left.
        "last": (2 + 20 + 3) * MAP,
    }


def test_views_and_work_in_place_share_memory() -> None:
    model = nn.Sequential(nn.Conv2d(2, 6, 1), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(6 * 64, 5))
    alive = alive_bytes(model, as_batch(torch.randn(3, 2, 8, 8)), ["0", "3"])
    assert alive == {"0": 3 * (2 + 6) * MAP, "3": 3 * ((2 + 6) * MAP + 4 * 5)}


def test_what_functions_made_waits_as_well() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.deep, self.up = nn.Conv2d(2, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(16, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            kept = torch.relu(self.down(x))
            deep = self.deep(torch.max_pool2d(kept, 2))
            result: Tensor = self.up(torch.cat([kept, nn.functional.interpolate(deep, scale_factor=2)], 1))
            return result

    alive = alive_bytes(Functional(), as_batch(torch.randn(1, 2, 8, 8)), ["deep", "up"])
    # A pooled map is a quarter as large; pooling also says where its maxima were, in no tensor that stays.
    assert alive["deep"] == (2 + 8 + 2 + 2) * MAP
    assert alive["up"] == (2 + 8 + 2 + 16 + 3) * MAP


def test_mapped_functions_are_run_as_they_are() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.gelu = nn.Linear(7, 7), nn.GELU()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.vmap(self.gelu)(self.first(x))
            return result

    assert alive_bytes(Mapped(), as_batch(torch.randn(2, 7)), ["first"]) == {"first": 2 * 2 * 4 * 7}


def test_a_layer_counts_at_its_first_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(7, 7)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = self.layer(x)
            return first, self.layer(first)

    assert alive_bytes(Twice(), as_batch(torch.randn(1, 7)), ["layer"]) == {"layer": 2 * 4 * 7}
