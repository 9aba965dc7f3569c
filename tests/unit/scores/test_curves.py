# SPDX-License-Identifier: Apache-2.0
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from seams import never_falling
from slimrank import OptionError, ScoreError, UnknownNameError
from slimrank.cost import layer_cost
from slimrank.plan import structure_of
from slimrank.records import Curve, Form, Method
from slimrank.scores import ScoredSource, ScoreEntry, Scores, score_curves, scored_source
from slimrank.select import select_plan
from specs import Source, conv2d, linear

# 100 x 100: rank r costs 200 r of 10 000 MACs, so keep ratios are 0.02 r.
FC = linear("fc", 100, 100)
# Kernel 3 x 3, 16 -> 16, 8 x 8: v_h and kxk_1x1 cost differently.
CONV = conv2d("conv", 16, 16, size=8)
STRUCTURE = structure_of([CONV, FC])


def table(
    ranks: Mapping[int, float], *, baseline: float = 100.0, lower: bool = False, layer: str = "fc"
) -> Scores:
    entries = tuple(
        ScoreEntry(method="weight_svd", form="linear", rank=rank, keep_ratio=0.02 * rank, score=score)
        for rank, score in ranks.items()
    )
    return Scores(
        fingerprint={"structure": "s"},
        baseline=baseline,
        lower_is_better=lower,
        methods=("weight_svd",),
        candidates=(0.5,),
        entries={layer: entries},
    )


def losses(curves: Sequence[Curve]) -> dict[int, float]:
    (curve,) = curves
    assert np.all(np.diff(curve.ranks) > 0)
    return dict(zip(curve.ranks.tolist(), curve.damage.tolist(), strict=True))


def test_tried_ranks_with_their_losses() -> None:
    curves = score_curves(table({5: 11, 15: 23, 25: 101}), STRUCTURE, has_bias=True)
    assert losses(curves) == {5: 89, 15: 77, 25: -1}
    assert curves[0].macs.tolist() == [1000, 3000, 5000]
    assert curves[0].params.tolist() == [1100, 3100, 5100]
    assert np.isnan(curves[0].error).all()
    lower = score_curves(table({5: 11, 15: 3}, baseline=2.0, lower=True), STRUCTURE, has_bias=True)
    assert losses(lower) == {5: 9, 15: 1}


def test_monotone_losses_never_rise_with_the_ratio() -> None:
    curves = score_curves(table({5: 10, 15: 50, 25: 40, 35: 90}), STRUCTURE, has_bias=True, monotonic=True)
    assert losses(curves) == {5: 90, 15: 55, 25: 55, 35: 10}
    # What is monotone already stays as it is: the polynomial that AIMET fits moves it by up to 7.4 points.
    scores = [0.1, 10, 40, 60, 69, 70, 71, 72, 72]
    flat = table({5 * k: score for k, score in enumerate(scores, 1)})
    monotone = score_curves(flat, STRUCTURE, has_bias=True, monotonic=True)
    assert losses(monotone) == losses(score_curves(flat, STRUCTURE, has_bias=True))


def test_never_falling_pools_violators() -> None:
    values = np.array([1.0, 3.0, 2.0, 2.5, 5.0, 4.0])
    assert never_falling(values).tolist() == [1.0, 2.5, 2.5, 2.5, 4.5, 4.5]


@pytest.mark.parametrize(("score", "rank"), [(45, 25), (48, 35), (90, None), (11, 5), (12, 15), (5, 5)])
def test_walking_down_is_aimet_s_rule(score: float, rank: int | None) -> None:
    # The ranks that AIMET takes, but for (11, 5): an equal score is taken here; AIMET leaves the layer alone.
    own = {5: 11.0, 15: 23.0, 25: 47.0, 35: 85.0, 45: 89.0}
    found = losses(score_curves(table(own), STRUCTURE, has_bias=True, walk_down=True))
    within = [rank for rank, loss in found.items() if loss <= 100 - score]
    assert min(within, default=None) == rank


def test_walking_down_stops_before_the_first_that_falls_below() -> None:
    # Without the walk the cheap and lucky rank 5 would be taken.
    own = table({5: 95.0, 15: 20.0, 25: 90.0})
    assert losses(score_curves(own, STRUCTURE, has_bias=True, walk_down=True)) == {5: 80, 15: 80, 25: 10}


def test_ranks_round_up_to_true_multiples() -> None:
    curves = score_curves(table({5: 10, 16: 50, 25: 80, 45: 90}), STRUCTURE, has_bias=True, multiple_of=8)
    # 16 as tried; 5 -> 8 lies 3/11 of the way from 5 to 16, 25 -> 32 7/20 of that from 25 to 45, and
    # 45 -> 48 3/5 of that from 45 to the untouched layer at 50.
    expected = {8: 90 - 40 * 3 / 11, 16: 50.0, 32: 20 - 10 * 7 / 20, 48: 10 - 10 * 3 / 5}
    found = losses(curves)
    assert list(found) == list(expected)
    assert found == pytest.approx(expected, abs=1e-12)
    # 49 -> 56 would cost more than the layer.
    assert losses(score_curves(table({16: 1, 49: 2}), STRUCTURE, has_bias=True, multiple_of=8)) == {16: 99}
    # No multiple is left at all: no curve.
    assert score_curves(table({5: 1}), STRUCTURE, has_bias=True, multiple_of=64) == ()
    by_glob = score_curves(table({5: 10, 16: 50}), STRUCTURE, has_bias=True, multiple_of={"f*": 16})
    assert list(losses(by_glob)) == [16]


def test_interpolating_offers_every_rank_from_the_smallest_tried_on() -> None:
    found = losses(score_curves(table({20: 40, 40: 80}), STRUCTURE, has_bias=True, interpolate=True))
    assert list(found) == list(range(20, 50))
    assert found == pytest.approx(
        {r: 60 - 2 * (r - 20) if r <= 40 else 20 - 2 * (r - 40) for r in found}, abs=1e-12
    )
    eights = score_curves(table({20: 40, 40: 80}), STRUCTURE, has_bias=True, interpolate=True, multiple_of=8)
    assert list(losses(eights)) == [24, 32, 40, 48]


def test_between_two_forms_the_dearer_one_is_taken() -> None:
    def conv(method: Method, form: Form, rank: int, score: float) -> ScoreEntry:
        return ScoreEntry(method=method, form=form, rank=rank, keep_ratio=0.1, score=score)

    scores = Scores(
        fingerprint={},
        baseline=1.0,
        lower_is_better=False,
        methods=("spatial_svd",),
        candidates=(0.5,),
        entries={"conv": (conv("spatial_svd", "h_v", 4, 0.2), conv("spatial_svd", "v_h", 10, 0.8))},
    )
    curves = score_curves(scores, STRUCTURE, has_bias=False, interpolate=True)
    ranks = {curve.form: curve.ranks.tolist() for curve in curves}
    # 96 of 2304 weights per rank: 24 is the full cost.
    assert ranks == {"h_v": [4], "v_h": list(range(5, 24))}


def test_what_the_model_cannot_take() -> None:
    with pytest.raises(ScoreError, match=r"the model has no layer 'fcc'; did you mean 'fc'"):
        score_curves(table({5: 1}, layer="fcc"), STRUCTURE, has_bias=True)
    with pytest.raises(ScoreError, match=r"layer 'conv' cannot take weight_svd linear rank 5"):
        score_curves(table({5: 1}, layer="conv"), STRUCTURE, has_bias=True)
    with pytest.raises(ScoreError, match=r"layer 'fc' cannot take weight_svd linear rank 101"):
        score_curves(table({101: 1}), STRUCTURE, has_bias=True)
    with pytest.raises(OptionError, match=r"multiple_of is 0"):
        score_curves(table({5: 1}), STRUCTURE, has_bias=True, multiple_of=0)
    with pytest.raises(UnknownNameError, match=r"multiple_of\['x'\] matches no layer"):
        score_curves(table({5: 1}), STRUCTURE, has_bias=True, multiple_of={"x": 8})


def test_methods_may_be_fewer() -> None:
    assert score_curves(table({5: 1}), STRUCTURE, has_bias=True, methods=("spatial_svd",)) == ()


def test_a_source_for_plans() -> None:
    scores = table({5: 11, 15: 23, 25: 100})
    study = Source(STRUCTURE, layer_cost(FC) + layer_cost(CONV))
    source = scored_source(study, scores, {"structure": "s"}, walk_down=True)
    assert isinstance(source, ScoredSource)
    plan = select_plan(source, budgets={"params": 0.7}, select="greedy")
    assert {name: setting.rank for name, setting in plan.settings.items()} == {"fc": 25}
    assert plan.damage == 0
    with pytest.raises(ScoreError, match=r"with other structure than this study"):
        scored_source(study, scores, {"structure": "t"})
