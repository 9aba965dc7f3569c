# SPDX-License-Identifier: Apache-2.0
"""Whatever the network: what is slimmed equals what is masked, and costs, plans and files are exact."""

import os
import random
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_nets import Example, random_nets
from torch import Tensor, nn

import slimrank as sr
from slimrank.capture import capture
from slimrank.channels import read_groups, try_groups
from slimrank.forward import as_batch, named_tensors, run
from slimrank.records import ChannelMap
from slimrank.select import reachable_floor
from slimrank.surgery import mask, quiet_copy, slim

# ``make bench-zoo`` asks for hundreds.
N_EXAMPLES = int(os.environ.get("SLIMRANK_RANDOM_NETS", "24"))
_slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
_some = settings(deadline=None, max_examples=N_EXAMPLES, derandomize=True, suppress_health_check=_slow)
_few = settings(_some, max_examples=max(N_EXAMPLES // 6, 1))


def _drawn(channels: ChannelMap, seed: int) -> dict[str, tuple[int, ...]]:
    """Some units of every group that can be slimmed."""
    draw = random.Random(seed)
    kept = {}
    for group in channels.groups.values():
        if group.reason is None:
            n = draw.randint(1, group.units)
            kept[group.name] = tuple(sorted(draw.sample(range(group.units), n)))
    return kept


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [tensor for _, tensor in named_tensors(run(model, as_batch(x)))]


@pytest.mark.slow
@_some
@given(example=random_nets())
def test_slimmed_equals_masked(example: Example) -> None:
    model = quiet_copy(example.model)
    batch = as_batch(example.inputs(2))
    layers = capture(model, batch, methods=("weight_svd",), skip=(), has_bias=True)
    channels = try_groups(model, batch, read_groups(model, layers.sample, layers.layers))
    assert all(group.reason is None or group.reason.strip() for group in channels.groups.values())
    for seed in range(2):
        kept = _drawn(channels, seed)
        slimmed, masked = quiet_copy(example.model), quiet_copy(example.model)
        slim(slimmed, channels, kept)
        mask(masked, channels, kept)
        x = example.inputs(3, seed=seed + 1)
        for expected, got in zip(_outputs(masked, x), _outputs(slimmed, x), strict=True):
            scale = float(expected.abs().max()) + 1e-6
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.slow
@_few
@given(example=random_nets(max_steps=6))
def test_costs_plans_and_files_are_exact(example: Example) -> None:
    batches = [example.inputs(4, seed=seed) for seed in range(2)]
    study = sr.study(example.model, batches, draws=1, progress=False)
    plan = study.plan(macs=max(0.6, reachable_floor(study, "macs")))
    result = study.apply(plan)
    assert (result.after.macs, result.after.params) == (plan.after.macs, plan.after.params)
    assert result.after.bytes == plan.after.bytes
    with tempfile.TemporaryDirectory() as folder:
        result.save(Path(folder) / "saved")
        loaded = sr.load(Path(folder) / "saved", model=quiet_copy(example.model))
        plan.save(Path(folder) / "plan.json")
        assert sr.Plan.load(Path(folder) / "plan.json").steps == plan.steps
    kept, found = result.model.state_dict(), loaded.state_dict()
    assert list(kept) == list(found)
    assert all(torch.equal(kept[name], found[name]) for name in kept)
    # Kernels differ in the last bit with where tensors lie.
    for expected, got in zip(_outputs(result.model, batches[0]), _outputs(loaded, batches[0]), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@settings(_some, max_examples=max(N_EXAMPLES // 12, 1))
@given(example=random_nets(max_steps=4))
def test_peaks_of_activations_are_kept_or_refused_with_the_floor(example: Example) -> None:
    study = sr.study(example.model, [example.inputs(4)], draws=1, progress=False)
    curves = {curve.group: curve for curve in study.group_curves}
    smallest = sr.Plan.manual(
        study,
        {name: ("channel_pruning", {"keep": int(curve.kept.min())}) for name, curve in curves.items()},
    )
    for ratio in (0.8, 0.55):
        try:
            plan = study.plan(activation_bytes=ratio)
        except sr.BudgetError:
            # Without pairs and dropped blocks, nothing needs less than everything at its smallest.
            assert sr.activation_bytes(study, smallest).keep_ratio > ratio
            continue
        assert plan.activations is not None
        assert plan.activations.keep_ratio <= ratio
        result = study.apply(plan)
        assert result.activation_bytes is not None
        assert result.activation_bytes.after == plan.activations.after
