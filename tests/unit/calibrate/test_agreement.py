# SPDX-License-Identifier: Apache-2.0
"""How far outputs agree, counted by hand on small tensors."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from slimrank.calibrate import choose_likelihood, measure_agreement
from slimrank.forward import Batch, Picked
from slimrank.records import Agreement, LikelihoodChoice


def _agreement(
    before: Sequence[Mapping[str, Tensor]],
    after: Sequence[Mapping[str, Tensor]],
    choice: LikelihoodChoice,
    masks: Sequence[Tensor] | None = None,
    weights: Mapping[str, float] | None = None,
) -> Agreement:
    joined = {path: torch.cat([part[path] for part in before]) for path in before[0]}
    likelihood = choose_likelihood(joined, choice, weights)
    batches = [
        Batch(
            args=(next(iter(part.values())),),
            kwargs={} if masks is None else {"attention_mask": masks[index]},
        )
        for index, part in enumerate(before)
    ]
    references = [Picked(None, part) for part in before]
    results = [part if list(part) != [""] else part[""] for part in after]
    return measure_agreement(results, references, batches, likelihood, None)


def test_equal_classes_are_counted() -> None:
    before = torch.eye(4) * 9
    after = before.clone()
    after[0] = torch.tensor([0.0, 9.0, 0.0, 0.0])
    found = _agreement(
        [{"": before[:3]}, {"": before[3:]}], [{"": after[:3]}, {"": after[3:]}], "categorical"
    )
    output = found[""]
    assert found.top1 == output.top1 == float(found) == 0.75
    assert (output.cosine, output.relative_error, output.by_element) == (None, None, ())
    assert output.divergence == pytest.approx(found.divergence)
    assert "top1 0.75" in repr(found)


def test_classes_of_sequences_are_counted_at_every_position() -> None:
    before = 9 * torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [2, 1, 0]]), 3).float()
    after = before.clone()
    after[1, 2] = torch.tensor([0.0, 9.0, 0.0])
    output = _agreement([{"": before}], [{"": after}], "categorical")[""]
    assert (output.top1, output.positions) == (pytest.approx(5 / 6), 3)
    assert (output.by_element, output.elements, output.worst) == ((1.0, 1.0, 0.5), (3,), (2,))


def test_padding_does_not_count() -> None:
    before = 9 * torch.nn.functional.one_hot(torch.tensor([[0, 1, 2], [2, 1, 0]]), 3).float()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    after = before.clone()
    after[0, 2] = torch.tensor([9.0, 0.0, 0.0])
    output = _agreement([{"": before}], [{"": after}], "categorical", [mask])[""]
    assert (output.top1, output.divergence) == (1.0, 0.0)
    after[1, 2] = torch.tensor([0.0, 9.0, 0.0])
    output = _agreement([{"": before}], [{"": after}], "categorical", [mask])[""]
    assert output.top1 == pytest.approx(4 / 5)
    # One sample has a token there.
    assert output.by_element == (1.0, 1.0, 0.0)


def test_numbers_have_a_cosine_and_an_error_in_spreads() -> None:
    before = torch.tensor([[1.0, 10.0], [3.0, 30.0], [5.0, 50.0]])
    spread = before.std(0, correction=0)
    change = torch.tensor([0.3, 0.4]) * spread
    found = _agreement([{"": before}], [{"": before + change}], "gaussian")
    output = found[""]
    assert output.relative_error == pytest.approx(math.sqrt((0.09 + 0.16) / 2), rel=1e-5)
    assert output.by_element == pytest.approx((0.3, 0.4), rel=1e-5)
    assert (output.elements, output.worst) == ((2,), (1,))
    cosine = torch.nn.functional.cosine_similarity(before, before + change).mean()
    assert output.cosine == float(found) == pytest.approx(float(cosine))
    assert output.divergence == output.lost == pytest.approx(0.125, rel=1e-5)
    assert found.top1 is None


def test_samples_that_stay_zero_agree() -> None:
    before = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.0]])
    after = torch.tensor([[0.0, 0.0], [1.0, 2.0], [0.0, 0.1]])
    assert _agreement([{"": before}], [{"": before}], "gaussian").cosine == pytest.approx(1)
    assert _agreement([{"": before}], [{"": after}], "gaussian").cosine == pytest.approx(2 / 3)


def test_maps_of_numbers_are_told_by_channel(rng: torch.Generator) -> None:
    before = torch.randn((8, 2, 5, 6), generator=rng) * torch.tensor([1.0, 100.0]).view(2, 1, 1)
    after = before.clone()
    after[:, 1] += 50
    output = _agreement([{"": before}], [{"": after}], "gaussian")[""]
    assert output.elements == (2,)
    assert output.by_element[0] == 0
    assert output.by_element[1] == pytest.approx(0.5, rel=0.1)
    # Channels last, and heads whose last dimension holds what each place tells.
    last = before.movedim(1, -1)[:, :5, :5]
    output = _agreement([{"": last}], [{"": last + torch.tensor([0.0, 50.0])}], "gaussian")[""]
    assert (output.elements, output.worst) == ((2,), (1,))
    head = torch.randn((8, 3, 4, 4, 5), generator=rng) * torch.tensor([1.0, 1.0, 1.0, 1.0, 30.0])
    output = _agreement([{"": head}], [{"": head + torch.tensor([0.5, 0, 0, 0, 0])}], "gaussian")[""]
    assert output.elements == (3, 5)
    assert output.by_element[0] == pytest.approx(0.5, rel=0.3)
    assert not any(output.by_element[1:5])


def test_samples_of_other_shapes_have_one_figure(rng: torch.Generator) -> None:
    parts = [torch.randn((20, length, 3), generator=rng) for length in (4, 6)]
    likelihood = choose_likelihood({"": parts[0]}, "gaussian")
    batches = [Batch(args=(part,), kwargs={}) for part in parts]
    references = [Picked(None, {"": part}) for part in parts]
    found = measure_agreement([part + 0.1 for part in parts], references, batches, likelihood, None)[""]
    assert found.by_element == ()
    assert found.worst is None
    assert found.relative_error is not None
    assert 0.05 < found.relative_error < 0.2


def test_the_mean_over_outputs_is_what_is_lost(rng: torch.Generator) -> None:
    before = {f"head{index}": torch.randn((64, 1), generator=rng) for index in range(16)}
    after = {path: values + 0.2 * values.std() for path, values in before.items()}
    after["head3"] = torch.zeros(64, 1)
    found = _agreement([before], [after], "gaussian")
    assert len(found) == 16
    assert found["head3"].lost == pytest.approx(1, rel=0.1)
    assert found.lost == pytest.approx((15 * 0.04 + 1) / 16, rel=0.1)
    # The divergence itself is a sum, to which weights count.
    assert found.divergence == pytest.approx(16 * found.lost, rel=1e-4)
    heavy = _agreement([before], [after], "gaussian", weights={"head3": 100.0})
    assert heavy.divergence > 50 * found["head3"].lost
    assert heavy["head3"].divergence == pytest.approx(found["head3"].divergence)
    assert heavy.lost == pytest.approx(found.lost)
    assert (heavy["head3"].weight, heavy["head4"].weight) == (100, 1)
    assert "head99" not in found
    with pytest.raises(KeyError, match=r"there is no output 'head33'; did you mean 'head3"):
        found["head33"]


def test_what_is_not_finite_does_not_agree() -> None:
    before = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    broken = torch.full((2, 2), math.nan)
    classes = _agreement([{"": before}], [{"": broken}], "categorical")
    assert (classes.divergence, classes.top1, classes.lost) == (math.inf, 0.0, math.inf)
    numbers = _agreement([{"": before}], [{"": broken}], "gaussian")
    assert (numbers.divergence, numbers.cosine, numbers.relative_error) == (math.inf, 0.0, math.inf)


def test_yes_or_no_is_told_as_numbers(rng: torch.Generator) -> None:
    before = torch.randn((32, 4), generator=rng).sigmoid()
    output = _agreement([{"": before}], [{"": before}], "bernoulli")[""]
    assert (output.family, output.top1, output.relative_error, output.lost) == ("bernoulli", None, 0.0, 0.0)
    assert output.cosine == pytest.approx(1)
    assert output.positions == 4
