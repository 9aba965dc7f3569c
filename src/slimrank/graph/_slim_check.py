# SPDX-License-Identifier: Apache-2.0
"""Whether a model without some channels is the model with these channels at zero, on real batches."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from slimrank.graph._batch import Batch, named_tensors
from slimrank.graph._modules import call, copy_model, plain_attention
from slimrank.graph._slim import mask, slim
from slimrank.records import ChannelMap

_TOLERANCE = 1e-4
_EPS_FACTOR = 64


def slim_failures(
    original: nn.Module,
    channels: ChannelMap,
    kept: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
) -> Mapping[str, str]:
    """The groups that cannot go from a model, though its map says so.

    The model without the units that go is compared with the model whose consumers read zeros from them. All
    groups are tried at once, and one after another only where that fails.

    Args:
        original: in eval mode; not changed.
        channels: its groups.
        kept: group -> units that stay.
        batches: to compare on.

    Returns:
        What happened, by group; empty where everything agrees.
    """
    if _problem(original, channels, kept, batches) is None:
        return {}
    sound: dict[str, Sequence[int]] = {}
    failures: dict[str, str] = {}
    for name, units in kept.items():
        problem = _problem(original, channels, {**sound, name: units}, batches)
        if problem is None:
            sound[name] = units
        else:
            failures[name] = problem
    return failures


def _problem(
    original: nn.Module,
    channels: ChannelMap,
    kept: Mapping[str, Sequence[int]],
    batches: Sequence[Batch],
) -> str | None:
    """How the slimmed and the masked model differ; None where they agree."""
    slimmed, masked = copy_model(original), copy_model(original)
    slim(slimmed, channels, kept)
    mask(masked, channels, kept)
    with torch.no_grad(), plain_attention():
        for batch in batches:
            expected = _floats(call(masked, batch))
            try:
                got = _floats(call(slimmed, batch))
            except Exception as error:
                # Whatever the user's code raises is the answer to the question asked here.
                return f"the slimmed model fails ({type(error).__name__}: {error})".splitlines()[0]
            problem = _difference(expected, got)
            if problem is not None:
                return problem
    return None


def _floats(result: object) -> list[Tensor]:
    return [tensor.detach() for _, tensor in named_tensors(result) if tensor.is_floating_point()]


def _difference(expected: Sequence[Tensor], got: Sequence[Tensor]) -> str | None:
    shapes = [tuple(tensor.shape) for tensor in expected]
    if shapes != [tuple(tensor.shape) for tensor in got]:
        return "the slimmed model returns other shapes"
    for before, after in zip(expected, got, strict=True):
        finite = before.isfinite()
        if not torch.equal(finite, after.isfinite()):
            return "the slimmed model returns nan or inf"
        lost = (before - after)[finite].abs().double()
        scale = before[finite].abs().double().max() if finite.any() else torch.zeros(())
        tolerance = max(_TOLERANCE, _EPS_FACTOR * torch.finfo(before.dtype).eps)
        if lost.numel() and lost.max() > tolerance * scale:
            return f"slimmed and masked model differ by {float(lost.max() / scale.clamp_min(1e-30)):.1e}"
    return None
