# SPDX-License-Identifier: Apache-2.0
"""Who gets a bias: every case of the rule."""

from itertools import product

import pytest

from slimrank.cost import carries_mean, consumer_gains_bias, gains_bias
from slimrank.records import ChannelMap
from specs import conv2d, linear, other

_NORMS = ChannelMap(norms={"layer": "norm"})
_NO_NORMS = ChannelMap(norms={"another": "norm"})


@pytest.mark.parametrize(
    ("has_bias", "has_norm", "plan_has_bias"), list(product([False, True], repeat=3)), ids=str
)
def test_a_new_bias_is_for_layers_without_a_bias_or_a_norm_in_plans_with_data(
    has_bias: bool, has_norm: bool, plan_has_bias: bool
) -> None:
    gains = gains_bias(has_bias=has_bias, has_norm=has_norm, plan_has_bias=plan_has_bias)
    assert gains == ((has_bias, has_norm, plan_has_bias) == (False, False, True))


@pytest.mark.parametrize("plan_has_bias", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_consumers_go_by_their_own_bias_and_the_norms_of_the_model(
    has_bias: bool, plan_has_bias: bool
) -> None:
    for spec in (
        linear("layer", 4, 6, has_bias=has_bias),
        conv2d("layer", 4, 6, size=5, has_bias=has_bias),
        # Fitted as well: its kernel is the matrix of the taps.
        other("layer", "ConvTranspose2d", (6, 4, 3, 3), has_bias=has_bias),
    ):
        assert not consumer_gains_bias(spec, _NORMS, plan_has_bias=plan_has_bias)
        expected = plan_has_bias and not has_bias
        assert consumer_gains_bias(spec, _NO_NORMS, plan_has_bias=plan_has_bias) == expected


def test_a_layer_that_cannot_be_fitted_gets_none() -> None:
    spec = other("layer", "Embedding", (10, 4), has_bias=False)
    assert not consumer_gains_bias(spec, _NO_NORMS, plan_has_bias=True)
    assert not consumer_gains_bias(other("layer", "Bilinear", has_bias=False), _NO_NORMS, plan_has_bias=True)


@pytest.mark.parametrize(
    ("has_bias", "plan_has_bias", "expected"),
    [(False, False, False), (True, False, True), (False, True, True), (True, True, True)],
)
def test_means_move_where_there_is_a_bias_or_may_be_one(
    has_bias: bool, plan_has_bias: bool, expected: bool
) -> None:
    assert carries_mean(has_bias=has_bias, plan_has_bias=plan_has_bias) == expected
