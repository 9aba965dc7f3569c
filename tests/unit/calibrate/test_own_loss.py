# SPDX-License-Identifier: Apache-2.0
"""A loss of the caller's: its value, and gradients whose second moment is its curvature."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from seams import open_loss, sampled_loss
from slimrank.calibrate import Likelihood, choose_likelihood, divergence
from slimrank.forward import Picked

_N = 400
_DRAWS = 40


def _likelihood(
    function: Callable[..., Tensor], picked: Picked, n_samples: int, spread: float = 1.0
) -> Likelihood:
    spreads = {path: torch.full_like(tensor[0], spread) for path, tensor in picked.items()}
    loss = open_loss(function, picked, spreads, n_samples)
    return Likelihood(outputs=choose_likelihood(dict(picked), "gaussian").outputs, loss=loss)


def _second_moment(function: Callable[..., Tensor], value: Tensor, spread: float = 1.0) -> Tensor:
    """Of the gradients with respect to the outputs of one sample, over many draws."""
    values = value.expand(_N, *value.shape).clone()
    likelihood = _likelihood(function, Picked(values, {"": values}), _N, spread)
    total = torch.zeros(value.numel(), value.numel(), dtype=torch.float64)
    for seed in range(_DRAWS):
        leaf = values.clone().requires_grad_()
        generator = torch.Generator().manual_seed(seed)
        loss = sampled_loss(likelihood, Picked(leaf, {"": leaf}), generator, None, _N)
        assert loss.shape == ()
        (gradient,) = torch.autograd.grad(loss, leaf)
        flat = gradient.double().flatten(1)
        total += flat.T @ flat
    return total / (_N * _DRAWS)


def _hessian(function: Callable[..., Tensor], value: Tensor) -> Tensor:
    """By hand: torch's second derivatives of the loss of one sample."""
    shape = value.shape

    def of(flat: Tensor) -> Tensor:
        return function(flat.reshape(1, *shape), value[None]).sum()

    return torch.autograd.functional.hessian(of, value.flatten()).double()  # type: ignore[no-any-return]


def _quadratic(seed: int, size: int) -> Callable[..., Tensor]:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(seed))
    return lambda out, original: ((out - original) @ root).square().sum(1)


_LOSSES = {
    "squares": lambda out, original: (out - original).square().sum(1),
    "one direction": lambda out, original: (out - original).sum(1).square(),
    "a matrix": _quadratic(0, 5),
    "cosine": lambda out, original: 1 - functional.cosine_similarity(out, original, dim=1),
    "huber": lambda out, original: functional.huber_loss(out, original, reduction="none").mean(1),
    "softmax": lambda out, original: functional.kl_div(
        out.log_softmax(1), original.softmax(1), reduction="none"
    ).sum(1),
}


@pytest.mark.parametrize("name", _LOSSES)
def test_gradients_have_the_curvature_as_second_moment(name: str) -> None:
    value = torch.tensor([1.0, -0.5, 0.3, 2.0, 0.1])
    exact = _hessian(_LOSSES[name], value)
    # A mean of 16 000 draws of the size of the largest entry: standard error about 1 %; central differences
    # at a tenth of a spread add as much.
    found = _second_moment(_LOSSES[name], value)
    torch.testing.assert_close(found, exact, rtol=0, atol=0.06 * float(exact.abs().max()))


def test_the_spread_is_a_unit_only() -> None:
    value = torch.tensor([100.0, -50.0, 30.0])
    loss = _LOSSES["squares"]
    for spread in (0.1, 50.0):
        torch.testing.assert_close(
            _second_moment(loss, value, spread), 2 * torch.eye(3, dtype=torch.float64), rtol=0, atol=0.1
        )


def test_a_kink_is_taken_at_a_distance() -> None:
    # The gradient of |d| jumps from -1 to 1: at a tenth of a spread of 1 it looks like a slope of about 10.
    found = _second_moment(lambda out, original: (out - original).abs().sum(1), torch.zeros(4))
    assert found.diagonal().min() > 3
    assert found.diagonal().max() < 20
    off = found - found.diagonal().diag()
    assert off.abs().max() < 0.1 * found.diagonal().min()


def test_negative_curvature_counts_as_flat() -> None:
    def saddle(out: Tensor, original: Tensor) -> Tensor:
        difference = out - original
        return difference[:, 0].square() - difference[:, 1].square()

    found = _second_moment(saddle, torch.zeros(3))
    torch.testing.assert_close(found, torch.tensor([2.0, 0.0, 0.0]).diag().double(), rtol=0, atol=0.1)


def test_samples_have_curvatures_of_their_own(rng: torch.Generator) -> None:
    values = torch.randn((6, 3), generator=rng)
    factors = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0])
    likelihood = _likelihood(
        lambda out, original: factors * (out - original).square().sum(1), Picked(values, {"": values}), 6
    )
    total = torch.zeros(6)
    for seed in range(200):
        leaf = values.clone().requires_grad_()
        loss = sampled_loss(
            likelihood, Picked(leaf, {"": leaf}), torch.Generator().manual_seed(seed), None, 6
        )
        total += torch.autograd.grad(loss, leaf)[0].square().sum(1)
    # Two for each of three elements.
    torch.testing.assert_close(total / 200, 6 * factors, rtol=0.2, atol=1e-6)


def test_structures_are_given_as_they_were_picked(rng: torch.Generator) -> None:
    mask, boxes = torch.randn((4, 3, 2), generator=rng), torch.randn((4, 5), generator=rng)
    structure = {"mask": mask, "more": [boxes, torch.arange(4)]}
    picked = Picked(structure, {"mask": mask, "more.0": boxes})
    seen = []

    def loss(out: dict[str, object], original: dict[str, object]) -> Tensor:
        seen.append((list(out), out["more"][1]))  # type: ignore[index]
        mask, original_mask = out["mask"], original["mask"]
        assert isinstance(mask, Tensor)
        assert isinstance(original_mask, Tensor)
        return (mask - original_mask).square().sum((1, 2))

    likelihood = _likelihood(loss, picked, 4)
    leaves = picked.changed(lambda tensor: tensor.clone().requires_grad_())
    sampled = sampled_loss(likelihood, leaves, rng, None, 4)
    of_mask, of_boxes = torch.autograd.grad(sampled, [leaves["mask"], leaves["more.0"]])
    assert (of_mask != 0).all()
    # What the loss does not look at has no curvature but for rounding.
    assert of_boxes.abs().max() < 1e-2
    assert all(keys == ["mask", "more"] for keys, _ in seen)
    after = picked.changed(lambda tensor: tensor + 1)
    torch.testing.assert_close(divergence(likelihood, picked, after, None, 4), torch.full((4,), 6.0))


def test_outputs_without_samples_in_front_go_through(rng: torch.Generator) -> None:
    # (T, N, C): the loss knows where the samples are.
    values = torch.randn((7, 4, 3), generator=rng)
    picked = Picked(values, {"": values})
    likelihood = _likelihood(lambda out, original: (out - original).square().sum((0, 2)), picked, 4)
    leaf = values.clone().requires_grad_()
    loss = sampled_loss(likelihood, Picked(leaf, {"": leaf}), rng, None, 4)
    (gradient,) = torch.autograd.grad(loss, leaf)
    assert float(gradient.square().mean()) == pytest.approx(2, rel=0.4)


def test_the_original_against_itself_loses_nothing() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    picked = Picked(values, {"": values})
    likelihood = _likelihood(lambda out, original: 3 + (out - original).square().sum(1), picked, 2)
    assert divergence(likelihood, picked, picked, None, 2).tolist() == [0, 0]
    after = Picked(values + 1, {"": values + 1})
    assert divergence(likelihood, picked, after, None, 2).tolist() == [2, 2]
    assert likelihood.unit == "loss per sample"
    # Against the outputs of the other sample: 2^2 + 2^2.
    assert likelihood.all_lost == pytest.approx(8)


def test_outputs_that_are_not_finite_lose_what_they_lose() -> None:
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    picked = Picked(values, {"": values})
    likelihood = _likelihood(_LOSSES["squares"], picked, 2)
    broken = Picked(values / 0, {"": values / 0})
    assert not any(math.isfinite(lost) for lost in divergence(likelihood, picked, broken, None, 2).tolist())


def test_half_precision_goes_through(rng: torch.Generator) -> None:
    values = torch.randn((4, 3), generator=rng).bfloat16()
    likelihood = _likelihood(_LOSSES["squares"], Picked(values, {"": values}), 4)
    leaf = values.clone().requires_grad_()
    loss = sampled_loss(likelihood, Picked(leaf, {"": leaf}), rng, None, 4)
    assert torch.autograd.grad(loss, leaf)[0].dtype == torch.bfloat16


def test_samples_of_other_shapes_go_through(rng: torch.Generator) -> None:
    function = lambda out, original: (out - original).square().flatten(1).mean(1)  # noqa: E731
    values = torch.randn((6, 9, 3), generator=rng)
    likelihood = _likelihood(function, Picked(values, {"": values}), 6)
    leaf = torch.randn((6, 5, 3), generator=rng).requires_grad_()
    loss = sampled_loss(likelihood, Picked(leaf, {"": leaf}), rng, None, 6)
    assert bool(torch.autograd.grad(loss, leaf)[0].any())
