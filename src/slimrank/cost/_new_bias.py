# SPDX-License-Identifier: Apache-2.0
"""The one rule for new biases: which layers get one when they are fitted anew or become a pair."""

from slimrank.records import ChannelMap, LayerSpec


def gains_bias(*, has_bias: bool, has_norm: bool, plan_has_bias: bool) -> bool:
    """Whether a layer gets a bias.

    A fit moves the mean of the outputs, and something must make up for that: the bias of the layer, a batch
    norm behind it, or else a new bias.

    Args:
        has_bias: whether the layer has a bias.
        has_norm: whether it stays a single layer and a batch norm makes up for a mean that moves
            (``ChannelMap.norms``).
        plan_has_bias: whether the plan counts new biases; one that was made without data does not.

    Returns:
        True where it gets a new bias.
    """
    return plan_has_bias and not has_bias and not has_norm


def consumer_gains_bias(spec: LayerSpec, channels: ChannelMap, *, plan_has_bias: bool) -> bool:
    """Whether a layer that stays a single layer, and is fitted to fewer channels, gets a bias.

    Args:
        spec: the layer.
        channels: the channel map of the model.
        plan_has_bias: whether the plan counts new biases.

    Returns:
        True where it gets a new bias.
    """
    return spec.has_matrix and gains_bias(
        has_bias=spec.has_bias, has_norm=spec.name in channels.norms, plan_has_bias=plan_has_bias
    )


def carries_mean(*, has_bias: bool, plan_has_bias: bool) -> bool:
    """Whether a fit may move the mean of the outputs at all.

    For a pair that is whether its last factor has a bias.

    Args:
        has_bias: whether the layer has a bias.
        plan_has_bias: whether the plan counts new biases.

    Returns:
        False where a layer has no bias and the plan was made without data: it is built without a new one.
    """
    return has_bias or plan_has_bias


def pair_has_bias(spec: LayerSpec, *, plan_has_bias: bool) -> bool:
    """Whether the last factor of a pair that takes the place of a layer carries a bias.

    Args:
        spec: the layer.
        plan_has_bias: whether the plan counts new biases.

    Returns:
        True where the layer has one, or the plan gives it one.
    """
    return carries_mean(has_bias=spec.has_bias, plan_has_bias=plan_has_bias)
