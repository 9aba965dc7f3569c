# SPDX-License-Identifier: Apache-2.0
"""Fits of layers that stay in one piece, chosen on held-out rows."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from seams import LayerStatistics, Rows, best_fit
from slimrank import OptionError
from slimrank.linalg import Clipping, Moments, MomentSums, least_squares_weight
from slimrank.methods import Target
from specs import linear

_SPEC = linear("fc", 3, 4, methods=("channel_pruning",))


def _target(weight: Tensor, moments: Moments) -> Target:
    eye = torch.eye(len(weight), dtype=torch.float64)
    return Target(dense=weight, moments=moments, root=eye, inverse_root=eye, ridge=1e-9)


def _statistics(
    weight: Tensor, rng: torch.Generator, clipping: Clipping | None = None, below: float = 1.0
) -> LayerStatistics:
    """Rows and wanted outputs: a linear map of them, plus one; ``below`` times that where it is negative."""
    x = torch.randn(80, 4, generator=rng) + 0.5
    y = x @ weight.T.float() + 1
    y = y.where(y > 0, below * y)
    sums = MomentSums(4, other_width=3)
    sums.add(x[:60], y[:60])
    cross, mean_out = sums.cross()
    rows, held_out = (
        Rows(inputs=x[part], outputs=y[part], offsets=torch.zeros(3)) for part in (slice(60), slice(60, 80))
    )
    return LayerStatistics(
        moments=sums.moments(),
        cross=cross,
        mean_out=mean_out,
        held_out=[held_out],
        rows=[rows] if clipping else [],
        clipping=clipping,
    )


@pytest.fixture
def weight(rng: torch.Generator) -> Tensor:
    return torch.randn((3, 4), dtype=torch.float64, generator=rng)


def test_the_target_with_the_least_error_is_taken_with_its_kind(weight: Tensor, rng: torch.Generator) -> None:
    statistics = _statistics(weight, rng)

    def targets() -> Iterator[tuple[str, Target]]:
        yield "independent", _target(weight + 0.1, statistics.moments)
        yield "sequential", _target(weight, statistics.moments)
        yield "weights", _target(weight - 0.1, statistics.moments)

    fit = best_fit(_SPEC, None, statistics, targets())
    assert fit.kind == "sequential"
    assert isinstance(fit.factors, Tensor)
    assert torch.equal(fit.factors, weight)
    assert fit.bias is not None
    torch.testing.assert_close(fit.bias, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)


def test_without_held_out_rows_the_first_target_is_taken(weight: Tensor, rng: torch.Generator) -> None:
    all_statistics = _statistics(weight, rng)
    statistics = LayerStatistics(
        moments=all_statistics.moments,
        cross=all_statistics.cross,
        mean_out=all_statistics.mean_out,
        held_out=[],
        rows=[],
        clipping=None,
    )
    targets = [
        ("independent", _target(weight + 1, all_statistics.moments)),
        ("weights", _target(weight, all_statistics.moments)),
    ]
    assert best_fit(_SPEC, None, statistics, targets).kind == "independent"


def test_what_is_clipped_later_is_never_made_worse(weight: Tensor, rng: torch.Generator) -> None:
    clipping = Clipping(gains=torch.ones(3), low=0.0, high=float("inf"))
    statistics = _statistics(weight, rng, clipping, below=4.0)
    (held_out,) = statistics.held_out
    least_squares = least_squares_weight(weight, statistics.cross, statistics.moments, ridge=1e-9)
    start = _target(least_squares, statistics.moments)

    def error(of: LayerStatistics) -> float:
        fit = best_fit(_SPEC, None, of, [("sequential", start)])
        assert isinstance(fit.factors, Tensor)
        assert fit.bias is not None
        predicted = held_out.inputs @ fit.factors.T.float() + fit.bias.float()
        return float((predicted.relu() - held_out.outputs.relu()).square().mean())

    plain = LayerStatistics(
        moments=statistics.moments,
        cross=statistics.cross,
        mean_out=statistics.mean_out,
        held_out=[held_out],
        rows=[],
        clipping=None,
    )
    assert error(statistics) < 0.5 * error(plain)


def test_there_is_a_target(weight: Tensor, rng: torch.Generator) -> None:
    with pytest.raises(OptionError, match="layer 'fc': there is nothing to fit to"):
        best_fit(_SPEC, None, _statistics(weight, rng), [])
