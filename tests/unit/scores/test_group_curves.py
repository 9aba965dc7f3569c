# SPDX-License-Identifier: Apache-2.0
from collections.abc import Mapping

import numpy as np
import pytest

from slimrank import ScoreError
from slimrank.records import PRUNING, ChannelMap, GroupCurve, GroupSpec
from slimrank.scores import CHANNELS, ScoreEntry, Scores, score_group_curves

UNITS = 20
# Two outputs of the first producer to a unit.
CHANNEL_MAP = ChannelMap(
    groups={
        "fc": GroupSpec(name="fc", units=UNITS, unit_width=2, producers=("fc",), consumers=("out",)),
        "other": GroupSpec(name="other", units=4, unit_width=1, producers=("other",), consumers=("out",)),
    }
)


def curve(name: str, units: int) -> GroupCurve:
    kept = np.arange(1, units)
    error = (units - kept).astype(np.float64)
    return GroupCurve(group=name, order=tuple(range(units)), kept=kept, error=error, damage=error)


CURVES = (curve("fc", UNITS), curve("other", 4))


def table(counts: Mapping[int, float], group: str = "fc", *, lower: bool = False) -> Scores:
    return Scores(
        fingerprint={},
        baseline=100.0,
        lower_is_better=lower,
        methods=(PRUNING,),
        candidates=(0.5,),
        entries={},
        groups={
            group: tuple(
                ScoreEntry(method=PRUNING, form=CHANNELS, rank=count, keep_ratio=count / UNITS, score=score)
                for count, score in counts.items()
            )
        },
    )


def losses(scores: Scores, **options: object) -> dict[int, float]:
    found = score_group_curves(scores, CHANNEL_MAP, CURVES, **options)  # type: ignore[arg-type]
    assert [one.group for one in found] == ["fc"]
    assert found[0].order == CURVES[0].order
    assert np.isnan(found[0].error).all()
    return dict(zip(found[0].kept.tolist(), found[0].damage.tolist(), strict=True))


def test_tried_counts_with_their_losses() -> None:
    assert losses(table({2: 10, 8: 60, 14: 101})) == {2: 90, 8: 40, 14: -1}
    assert losses(table({2: 110, 8: 103}, lower=True)) == {2: 10, 8: 3}


def test_monotone_losses_never_rise_with_the_units() -> None:
    assert losses(table({2: 10, 6: 50, 10: 40, 14: 90}), monotonic=True) == {2: 90, 6: 55, 10: 55, 14: 10}


def test_walking_down_stops_before_the_first_that_falls_below() -> None:
    assert losses(table({2: 95, 6: 20, 10: 90}), walk_down=True) == {2: 80, 6: 80, 10: 10}


def test_outputs_of_the_first_producer_round_up_to_true_multiples() -> None:
    # Multiples of 8 outputs are multiples of 4 units; 14 -> 16 lies a third of the way to the whole group.
    found = losses(table({2: 10, 8: 60, 14: 70}), multiple_of=8)
    assert found == pytest.approx({4: 90 - 50 / 3, 8: 40, 16: 30 - 30 / 3})
    assert losses(table({2: 10, 8: 60}), multiple_of={"f*": 16}) == {8: 40}
    # No multiple is left at all: no curve.
    assert score_group_curves(table({2: 10}), CHANNEL_MAP, CURVES, multiple_of=64) == ()


def test_interpolating_offers_every_count_from_the_smallest_tried_one_on() -> None:
    found = losses(table({5: 40, 10: 80}), interpolate=True)
    expected = {count: 60 - 8 * (count - 5) if count <= 10 else 20 - 2 * (count - 10) for count in found}
    assert list(found) == list(range(5, UNITS))
    assert found == pytest.approx(expected)
    assert list(losses(table({5: 40, 10: 80}), interpolate=True, multiple_of=4)) == [6, 8, 10, 12, 14, 16, 18]


def test_what_the_study_does_not_offer() -> None:
    with pytest.raises(ScoreError, match=r"no curve of a group 'fcc'; did you mean 'fc'"):
        score_group_curves(table({2: 1}, "fcc"), CHANNEL_MAP, CURVES)
    with pytest.raises(ScoreError, match=r"group 'fc' cannot keep 20 of its 20 units; delete the entry"):
        score_group_curves(table({20: 1}), CHANNEL_MAP, CURVES)
