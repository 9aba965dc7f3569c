# SPDX-License-Identifier: Apache-2.0
"""Divergence of a whole model."""

import math

import pytest
import torch
from torch import Tensor, nn

from slimrank import OutputError
from slimrank.calibrate import measure_divergence, read_likelihood, reference_outputs
from slimrank.forward import Batch

_EYE = nn.Identity()


def _batches(*parts: Tensor) -> list[Batch]:
    return [Batch(args=(part,), kwargs={}) for part in parts]


def test_the_model_itself_does_not_diverge(rng: torch.Generator) -> None:
    batches = _batches(*(9 * torch.randn((7, 3), generator=rng)).split(2))
    references = reference_outputs(_EYE, batches, None)
    likelihood = read_likelihood(references, batches, "auto")
    results = [batch.args[0] for batch in batches]
    assert measure_divergence(results, references, batches, likelihood, None) == 0.0


def test_the_mean_is_over_samples_not_over_batches() -> None:
    sure, torn = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    batches = _batches(sure.expand(3, 2), sure)
    references = reference_outputs(_EYE, batches, None)
    likelihood = read_likelihood(references, batches, "categorical")
    kl = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    results = [sure.expand(3, 2), torn]
    assert measure_divergence(results, references, batches, likelihood, None) == pytest.approx(
        kl / 4, rel=1e-5
    )


def test_outputs_that_are_not_finite_diverge_infinitely() -> None:
    batches = _batches(torch.tensor([[3.0, 1.0]]))
    references = reference_outputs(_EYE, batches, None)
    likelihood = read_likelihood(references, batches, "categorical")
    broken = [torch.full((1, 2), float("nan"))]
    assert measure_divergence(broken, references, batches, likelihood, None) == math.inf


def test_references_are_not_overwritten() -> None:
    x = torch.ones(2, 2)
    (reference,) = reference_outputs(_EYE, _batches(x), None)
    x.zero_()
    assert torch.equal(reference[""], torch.ones(2, 2))


def test_the_chosen_outputs_are_compared() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"a": x, "b": 2 * x}

    batches = _batches(torch.tensor([[3.0, 1.0], [0.0, 5.0]]))
    (reference,) = reference_outputs(Two(), batches, "b")
    assert list(reference) == ["b"]
    assert torch.equal(reference["b"], torch.tensor([[6.0, 2.0], [0.0, 10.0]]))
    with pytest.raises(OutputError, match="outputs='c': the model returns a dict, and 'c' is not in it"):
        reference_outputs(Two(), batches, "c")


def test_the_spread_is_read_over_all_batches() -> None:
    parts = (torch.tensor([[0.0], [0.0]]), torch.tensor([[4.0], [4.0]]))
    batches = _batches(*parts)
    likelihood = read_likelihood(reference_outputs(_EYE, batches, None), batches, "auto")
    (model,) = likelihood.outputs.values()
    assert model.scale is not None
    assert model.scale.tolist() == [2.0]


def test_batches_of_different_lengths_are_read_by_the_first(rng: torch.Generator) -> None:
    batches = _batches(9 * torch.randn((2, 5, 3), generator=rng), 9 * torch.randn((2, 4, 3), generator=rng))
    references = reference_outputs(_EYE, batches, None)
    likelihood = read_likelihood(references, batches, "categorical")
    assert likelihood.reasons == ("output [5, 3]: categorical over its last dimension, as asked",)
    results = [batch.args[0] for batch in batches]
    assert measure_divergence(results, references, batches, likelihood, None) == 0.0


def test_padding_tokens_do_not_count() -> None:
    logits = torch.tensor([[[0.0, 9.0], [9.0, 0.0]]])
    batches = [Batch(args=(logits,), kwargs={"attention_mask": torch.tensor([[1, 0]])})]
    references = [{"": logits}]
    likelihood = read_likelihood(references, batches, "categorical")
    outside = logits.clone()
    outside[0, 1] = torch.tensor([-5.0, 5.0])
    assert measure_divergence([outside], references, batches, likelihood, None) == 0.0
    assert measure_divergence([-logits], references, batches, likelihood, None) > 1
