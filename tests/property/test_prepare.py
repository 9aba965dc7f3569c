# SPDX-License-Identifier: Apache-2.0
"""Whatever the network: made ready for exporters it computes the same, and keeps the norms that it must."""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from random_nets import Example, random_net, random_nets
from torch import Tensor, nn

from slimrank.deploy import prepare
from slimrank.forward import as_batch, named_tensors, run

N_EXAMPLES = int(os.environ.get("SLIMRANK_RANDOM_NETS", "40"))
_slow = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
_some = settings(deadline=None, max_examples=N_EXAMPLES, derandomize=True, suppress_health_check=_slow)


def _outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [tensor for _, tensor in named_tensors(run(model, as_batch(x)))]


def _norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]


@_some
@given(example=random_nets())
def test_what_is_prepared_computes_the_same(example: Example) -> None:
    before = {key: value.clone() for key, value in example.model.state_dict().items()}
    prepared = prepare(example.model, as_batch(example.inputs(3)))
    assert example.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[key]) for key, value in example.model.state_dict().items())
    for n in (1, 4):
        x = example.inputs(n, seed=n)
        for expected, got in zip(_outputs(example.model, x), _outputs(prepared.model, x), strict=True):
            scale = float(expected.abs().max()) + 1e-6
            # Data that were not checked, some of them with smaller outputs.
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-4 * scale)
    # Each norm that stays is told of, or counted.
    told = "\n".join(prepared.notes)
    assert all(f"{name!r}" in told for name in _norms(prepared.model)[:8])


@pytest.mark.slow
def test_norms_behind_layers_are_folded_in_random_networks() -> None:
    """As the list of steps shows: a norm that alone reads a convolution is gone, every other one stays."""
    n_folded = n_stay = 0
    for seed in range(150):
        model = random_net(8, seed).model
        prepared = prepare(model, as_batch(random_net(8, seed).inputs(2)))
        parts = prepared.model.parts
        for place, (part, reads) in enumerate(zip(model.parts, model.reads, strict=True)):
            if not isinstance(part, nn.BatchNorm2d):
                continue
            (read,) = reads
            n_uses = sum(value == read for others in model.reads for value in others)
            is_end = read > len(model.parts) - model.n_ends
            before = model.parts[read - 1] if read else None
            wanted = isinstance(before, nn.Conv2d | nn.ConvTranspose2d) and n_uses == 1 and not is_end
            n_folded, n_stay = n_folded + wanted, n_stay + (not wanted)
            assert isinstance(parts[place], nn.Identity if wanted else nn.BatchNorm2d), (seed, place)
    assert n_folded >= 5
    assert n_stay >= 5


@pytest.mark.slow
def test_in_float64_nothing_but_rounding_is_between_them() -> None:
    n_checked = 0
    for seed in range(60):
        example = random_net(8, seed)
        to_float = any(getattr(part, "name", "") == "dtype there and back" for part in example.model.parts)
        if example.vocab is not None or to_float:
            continue
        model, x = example.model.double(), example.inputs(3).double()
        prepared = prepare(model, as_batch(x))
        for expected, got in zip(_outputs(model, x), _outputs(prepared.model, x), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        n_checked += len(_norms(prepared.model)) < len(_norms(model))
    assert n_checked >= 5
