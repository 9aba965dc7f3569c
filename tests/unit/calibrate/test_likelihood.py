# SPDX-License-Identifier: Apache-2.0
"""How outputs are read: the choice, the label-free loss, the divergence, and that the two fit together."""

import math
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from seams import Family, sampled_loss
from slimrank import OptionError, OutputError, UnknownNameError
from slimrank.calibrate import Likelihood, OutputModel, choose_likelihood, divergence
from slimrank.forward import Picked
from slimrank.records import LikelihoodChoice

_N_DRAWS = 20_000


def _likelihood(
    family: Family, *, dim: int = -1, is_probability: bool = False, scale: Tensor | None = None
) -> Likelihood:
    model = OutputModel(family=family, dim=dim, is_probability=is_probability, scale=scale)
    return Likelihood(outputs={"": model})


def _one(likelihood: Likelihood) -> OutputModel:
    (model,) = likelihood.outputs.values()
    return model


def _scores(shape: tuple[int, ...], rng: torch.Generator, dim: int = -1) -> Tensor:
    """Scores of classes, as cross-entropy leaves them: one stands out, their sum is still."""
    values = torch.randn(shape, generator=rng)
    largest = torch.randint(shape[dim], values.argmax(dim, keepdim=True).shape, generator=rng)
    values = values.scatter_add(dim, largest, torch.full(largest.shape, 6.0))
    return values - values.mean(dim, keepdim=True)


# --- the choice ---


@pytest.mark.parametrize("choice", ["categorical", "bernoulli", "gaussian"])
def test_the_caller_is_obeyed(choice: LikelihoodChoice, rng: torch.Generator) -> None:
    likelihood = choose_likelihood({"": _scores((30, 5), rng)}, choice)
    assert _one(likelihood).family == choice
    assert not _one(likelihood).is_probability
    assert len(likelihood.reasons) == 1
    assert likelihood.reasons[0].endswith("as asked")


def test_what_was_taken_is_said_with_the_keyword_that_changes_it(rng: torch.Generator) -> None:
    (reason,) = choose_likelihood({"": _scores((30, 5), rng)}, "auto").reasons
    assert reason.startswith(
        "output [5]: categorical over its last dimension, one value stands out in each row"
    )
    assert reason.endswith("; if that is wrong, pass e.g. likelihood='gaussian'")
    several = {"a": _scores((30, 5), rng), "b.0": torch.randn((30, 1), generator=rng)}
    reasons = choose_likelihood(several, "auto").reasons
    assert reasons[0].startswith("'a' [5]: categorical")
    assert reasons[0].endswith("likelihood={'a': 'gaussian'}")
    assert reasons[1] == (
        "'b.0' [1]: gaussian, no dimension of it can hold classes; if that is wrong, pass e.g. "
        "likelihood={'b.0': 'bernoulli'}"
    )


def test_outputs_that_are_read_alike_share_a_note(rng: torch.Generator) -> None:
    heads = {str(index): torch.randn((30, 1), generator=rng) for index in range(16)}
    (reason,) = choose_likelihood(heads, "auto").reasons
    assert reason.startswith("'0', '1', '2', '3' and 12 more [1]: gaussian")


def test_every_output_is_chosen_on_its_own(rng: torch.Generator) -> None:
    tensors = {"classes": _scores((30, 5), rng), "boxes": torch.randn((30, 1), generator=rng)}
    likelihood = choose_likelihood(tensors, "auto")
    assert {name: model.family for name, model in likelihood.outputs.items()} == {
        "classes": "categorical",
        "boxes": "gaussian",
    }
    assert likelihood.unit == "nats per sample"
    assert choose_likelihood(tensors, "gaussian").unit == "relative squared error"


@pytest.mark.parametrize(
    "choice",
    [
        {"mask": "categorical", "edges": "bernoulli"},
        {"mask": "categorical", "edges.0": "bernoulli", "edges.1": "bernoulli"},
        ["categorical", "bernoulli"],
        ("categorical", "bernoulli", "bernoulli"),
    ],
)
def test_families_by_output(choice: LikelihoodChoice, rng: torch.Generator) -> None:
    tensors = {name: torch.randn((9, 4), generator=rng) for name in ("mask", "edges.0", "edges.1")}
    likelihood = choose_likelihood(tensors, choice)
    assert [output.family for output in likelihood.outputs.values()] == [
        "categorical",
        "bernoulli",
        "bernoulli",
    ]
    assert all("as asked" in reason for reason in likelihood.reasons)


def test_what_is_not_asked_for_is_read(rng: torch.Generator) -> None:
    tensors = {"a": _scores((30, 5), rng), "b": _scores((30, 5), rng)}
    families = choose_likelihood(tensors, {"b": "gaussian"}).outputs
    assert [output.family for output in families.values()] == ["categorical", "gaussian"]


@pytest.mark.parametrize(
    ("choice", "error", "words"),
    [
        (
            {"maks": "gaussian"},
            UnknownNameError,
            r"likelihood: there is no output 'maks'; did you mean 'mask'",
        ),
        (
            ["gaussian"],
            OptionError,
            r"likelihood has 1 entries for 2 outputs \('mask', 'edges'\); give one for",
        ),
        ({"mask": "softmax"}, OptionError, r"likelihood\['mask'\]='softmax'; it is one of 'auto', 'categ"),
        (["gaussian", "normal"], OptionError, r"likelihood\[1\]='normal'; it is one of 'auto'"),
        (3, OptionError, r"likelihood=3; give one of 'auto', .* a dict from outputs to these, or a list"),
    ],
)
def test_families_that_do_not_fit(choice: object, error: type[Exception], words: str) -> None:
    tensors = {name: torch.zeros(9, 4) for name in ("mask", "edges.0", "edges.1")}
    with pytest.raises(error, match=words):
        choose_likelihood(tensors, choice)  # type: ignore[arg-type]


def test_one_tensor_takes_one_family() -> None:
    with pytest.raises(OptionError, match=r"is for several outputs, and there is one .*give one family"):
        choose_likelihood({"": torch.zeros(9, 4)}, {"mask": "gaussian"})
    with pytest.raises(
        OptionError, match=r"weights=.* is for several outputs, and there is one .*leave it out"
    ):
        choose_likelihood({"": torch.zeros(9, 4)}, "gaussian", {"mask": 2.0})


class _Largest(TorchDispatchMode):
    """How many numbers the largest tensor of any operation holds."""

    numbers = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor):
                self.numbers = max(self.numbers, tensor.numel())
        return result


def test_no_square_of_a_vocabulary_is_held(rng: torch.Generator) -> None:
    scores = _scores((40, 4000), rng) * (0.5 + torch.rand((40, 1), generator=rng))
    with _Largest() as largest:
        (output,) = choose_likelihood({"": scores}, "auto").outputs.values()
    assert output.family == "categorical"
    assert largest.numbers < 4000**2 / 2


def test_the_width_of_a_map_with_one_channel_holds_no_classes(rng: torch.Generator) -> None:
    points = 8 * (torch.rand((40, 1, 24, 24), generator=rng) < 0.01) + 0.1 * torch.randn(
        (40, 1, 24, 24), generator=rng
    )
    for path in ("", "logits"):
        (output,) = choose_likelihood({path: points}, "auto").outputs.values()
        assert output.family == "gaussian"


def test_a_bump_on_a_curve_is_no_class(rng: torch.Generator) -> None:
    centres = 40 * torch.rand((60, 1), generator=rng)
    curves = 12 * (-(torch.arange(40) - centres).square() / 8).exp()
    (reason,) = choose_likelihood({"": curves}, "auto").reasons
    assert "gaussian, its elements follow each other as steps of a curve do" in reason


@pytest.mark.parametrize("values", [torch.full((40, 3), 2.0), torch.eye(15)], ids=["constant", "few rows"])
def test_what_shows_nothing_is_numbers(values: Tensor) -> None:
    (reason,) = choose_likelihood({"": 9 * values}, "auto").reasons
    assert "gaussian, its rows are too few, or never vary" in reason


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_probabilities_in_half_precision_are_probabilities(dtype: torch.dtype, rng: torch.Generator) -> None:
    for classes in (10, 1000):
        scores = _scores((60, classes), rng).to(dtype)
        (output,) = choose_likelihood({"": scores.softmax(-1)}, "auto").outputs.values()
        assert (output.family, output.is_probability) == ("categorical", True)
        reason = choose_likelihood({"": scores.log_softmax(-1)}, "auto").reasons[0]
        assert "logarithms of probabilities" in reason


# --- weights ---


def test_weights_multiply_divergence_and_curvature(rng: torch.Generator) -> None:
    tensors = {name: torch.randn((9, 4), generator=rng) for name in ("a", "b")}
    after = {name: tensor + 0.1 for name, tensor in tensors.items()}
    plain, weighed = (choose_likelihood(tensors, "gaussian", weights) for weights in (None, {"b": 9}))
    alone = [
        divergence(
            Likelihood(outputs={name: plain.outputs[name]}), {name: tensors[name]}, {name: after[name]}, None
        )
        for name in ("a", "b")
    ]
    torch.testing.assert_close(divergence(plain, tensors, after, None), alone[0] + alone[1])
    torch.testing.assert_close(divergence(weighed, tensors, after, None), alone[0] + 9 * alone[1])
    moments = []
    for likelihood in (plain, weighed):
        leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
        loss = sampled_loss(likelihood, leaves, torch.Generator().manual_seed(0), None)
        a, b = torch.autograd.grad(loss, list(leaves.values()))
        moments.append((float(a.square().sum()), float(b.square().sum())))
    assert moments[1][0] == pytest.approx(moments[0][0])
    assert moments[1][1] == pytest.approx(9 * moments[0][1])
    assert weighed.all_lost == pytest.approx(10)


@pytest.mark.parametrize(
    ("weights", "error", "words"),
    [
        ({"a": 0}, OptionError, r"weights\['a'\]=0; give a positive number \(an output that does not matter"),
        ({"a": -1.0}, OptionError, r"weights\['a'\]=-1.0; give a positive number"),
        ({"a": float("nan")}, OptionError, r"weights\['a'\]=nan; give a positive number"),
        ({"a": "much"}, OptionError, r"weights\['a'\]='much'; give a positive number"),
        ({"c": 1.0}, UnknownNameError, r"weights: there is no output 'c'; known are 'a', 'b'"),
        ([1.0], OptionError, r"weights has 1 entries for 2 outputs \('a', 'b'\); give one for each"),
        (2.0, OptionError, r"weights=2.0; give a dict from outputs to positive numbers, or a list"),
        ("a", OptionError, r"weights='a'; give a dict from outputs"),
    ],
)
def test_weights_that_do_not_fit(weights: object, error: type[Exception], words: str) -> None:
    tensors = {"a": torch.zeros(9, 4), "b": torch.zeros(9, 4)}
    with pytest.raises(error, match=words):
        choose_likelihood(tensors, "gaussian", weights)  # type: ignore[arg-type]


# --- what can be lost ---


def test_the_average_answer_loses_all(rng: torch.Generator) -> None:
    scores = _scores((2000, 5), rng)
    numbers = torch.randn((2000, 3), generator=rng) * torch.tensor([1.0, 10.0, 100.0]) + 5
    for family, values in (("categorical", scores), ("bernoulli", scores), ("gaussian", numbers)):
        likelihood = choose_likelihood({"": values}, family)
        if family == "gaussian":
            average = values.mean(0)
        elif family == "categorical":
            average = values.softmax(-1).mean(0).log()
        else:
            average = values.sigmoid().mean(0).logit()
        lost = divergence(likelihood, {"": values}, {"": average.expand_as(values)}, None).mean()
        assert float(lost) == pytest.approx(likelihood.all_lost, rel=1e-3)


def test_outputs_that_never_vary_can_lose_a_little() -> None:
    for family in ("categorical", "bernoulli"):
        assert choose_likelihood({"": torch.zeros(9, 4)}, family).all_lost > 0


def test_asked_for_probabilities_are_recognised(rng: torch.Generator) -> None:
    probabilities = torch.rand((30, 5), generator=rng)
    assert _one(choose_likelihood({"": probabilities}, "bernoulli")).is_probability
    assert not _one(choose_likelihood({"": probabilities}, "categorical")).is_probability
    normed = probabilities / probabilities.sum(-1, keepdim=True)
    assert _one(choose_likelihood({"": normed}, "categorical")).is_probability


def test_gaussian_spread_is_that_of_each_element() -> None:
    values = torch.tensor([[1.0, 10.0], [3.0, 10.0], [5.0, 40.0]])
    scale = _one(choose_likelihood({"": values}, "gaussian")).scale
    assert scale is not None
    torch.testing.assert_close(scale, values.std(0, correction=0))


def test_gaussian_spread_of_maps_is_that_of_channels(rng: torch.Generator) -> None:
    values = torch.randn((50, 3, 4, 5), generator=rng) * torch.tensor([100.0, 5.0, 10.0]).view(3, 1, 1)
    values[..., :2] *= 1e-4  # hardly varies there, as a border may
    likelihood = choose_likelihood({"": values}, "gaussian")
    scale = _one(likelihood).scale
    assert scale is not None
    torch.testing.assert_close(scale, values.var(0, correction=0).mean((1, 2), keepdim=True).sqrt())
    # As much at a place that hardly varies as anywhere else, and in a small channel as in a large one.
    for part in ((slice(None), 1), (slice(None), slice(None), slice(None), 0)):
        change = torch.zeros_like(values)
        change[part] = 0.1
        share = float(change.ne(0).float().mean())
        shifted = divergence(likelihood, {"": values}, {"": values + change * scale}, None)
        torch.testing.assert_close(shifted, torch.full((50,), 0.01 * share), rtol=1e-3, atol=0)


def test_gaussian_spread_of_sequences_is_that_of_each_element(rng: torch.Generator) -> None:
    # Which of the two dimensions holds the channels, nobody knows.
    values = torch.randn((50, 2, 6), generator=rng) * torch.tensor([100.0, 5.0]).view(2, 1)
    likelihood = choose_likelihood({"": values}, "gaussian")
    after = values.clone()
    after[:, 1] = 0
    lost = float(divergence(likelihood, {"": values}, {"": after}, None).mean())
    assert lost == pytest.approx(0.5, rel=0.2)


def test_gaussian_maps_may_have_other_sizes(rng: torch.Generator) -> None:
    large = torch.randn((20, 3, 6, 6), generator=rng) * torch.tensor([1.0, 10.0, 100.0]).view(3, 1, 1)
    likelihood = choose_likelihood({"": large}, "gaussian")
    scale = _one(likelihood).scale
    assert scale is not None
    small = large[..., :4]
    torch.testing.assert_close(
        divergence(likelihood, {"": small}, {"": small + 2 * scale}, None), torch.full((20,), 4.0)
    )
    other = torch.ones(20, 4, 5)
    one_scale = float(scale.square().mean().sqrt())
    torch.testing.assert_close(
        divergence(likelihood, {"": other}, {"": other + one_scale}, None), torch.ones(20)
    )


def test_gaussian_spread_has_a_floor() -> None:
    # An element that never varies must not weigh infinitely; one sample alone has no spread.
    constant = _one(choose_likelihood({"": torch.tensor([[1.0, 2.0], [5.0, 2.0]])}, "gaussian")).scale
    single = _one(choose_likelihood({"": torch.tensor([[3.0, 4.0]])}, "gaussian")).scale
    zero = _one(choose_likelihood({"": torch.zeros(4, 2)}, "gaussian")).scale
    assert constant is not None
    assert constant.tolist() == pytest.approx([2.0, 0.01 * math.sqrt(2.0)])
    assert single is not None
    assert single.tolist() == [3.0, 4.0]
    assert zero is not None
    assert zero.tolist() == [1.0, 1.0]


def test_unknown_likelihoods_are_refused() -> None:
    with pytest.raises(OptionError, match=r"likelihood='softmax'; it is one of 'auto', 'categorical'"):
        choose_likelihood({"": torch.zeros(3, 2)}, "softmax")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(30,), (30, 1)], ids=str)
def test_categorical_needs_classes(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        OutputError, match=r"output head is \[30.*at least two classes.*likelihood='bernoulli'"
    ):
        choose_likelihood({"head": torch.zeros(shape)}, "categorical")


# --- the loss ---


def _gradients(likelihood: Likelihood, values: Tensor, seed: int = 0, mask: Tensor | None = None) -> Tensor:
    leaf = values.clone().requires_grad_()
    loss = sampled_loss(likelihood, {"": leaf}, torch.Generator().manual_seed(seed), mask)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, leaf)
    return gradient


def _second_moment(likelihood: Likelihood, value: Tensor) -> Tensor:
    """Of the gradient with respect to the outputs of one sample, over many draws at once."""
    repeated = value.expand(_N_DRAWS, *value.shape)
    gradient = _gradients(likelihood, repeated).double().flatten(1)
    return gradient.T @ gradient / _N_DRAWS


def _fisher(likelihood: Likelihood, value: Tensor) -> Tensor:
    """Exact, by hand."""
    model = _one(likelihood)
    if model.family == "gaussian":
        assert model.scale is not None
        return torch.diag(2 / len(value) / model.scale.double().square())
    if model.family == "bernoulli":
        p = value.double() if model.is_probability else value.double().sigmoid()
        return torch.diag(1 / (p * (1 - p)) if model.is_probability else p * (1 - p))
    p = value.double() if model.is_probability else value.double().softmax(-1)
    return torch.diag(1 / p) if model.is_probability else torch.diag(p) - p.outer(p)


_CASES: Mapping[str, tuple[Likelihood, Tensor]] = {
    "softmax": (_likelihood("categorical"), torch.tensor([1.0, -0.5, 0.3])),
    "probabilities": (_likelihood("categorical", is_probability=True), torch.tensor([0.5, 0.3, 0.2])),
    "bernoulli": (_likelihood("bernoulli"), torch.tensor([1.0, -2.0])),
    "bernoulli probabilities": (_likelihood("bernoulli", is_probability=True), torch.tensor([0.3, 0.6])),
    "gaussian": (_likelihood("gaussian", scale=torch.tensor([0.5, 2.0])), torch.tensor([3.0, -1.0])),
}


@pytest.mark.parametrize("name", _CASES)
def test_gradients_have_the_fisher_information_as_second_moment(name: str) -> None:
    likelihood, value = _CASES[name]
    exact = _fisher(likelihood, value)
    # A mean of 20 000 terms of the size of the largest entry: standard error below 1 %, five of them 5 %.
    torch.testing.assert_close(
        _second_moment(likelihood, value), exact, rtol=0, atol=0.05 * float(exact.max())
    )


@pytest.mark.parametrize("name", _CASES)
def test_the_fisher_form_is_the_divergence_of_a_small_change(name: str, rng: torch.Generator) -> None:
    likelihood, value = _CASES[name]
    change = 0.02 * torch.randn(value.shape, generator=rng)
    if _one(likelihood).is_probability and _one(likelihood).family == "categorical":
        change = change - change.mean()  # stays a distribution
    expected = float(change.double() @ _fisher(likelihood, value) @ change.double()) / 2
    # Both directions: the third order cancels; the fourth, (change / probability)^2, is a percent or two.
    both = [
        divergence(likelihood, {"": value[None]}, {"": (value + sign * change)[None]}, None).item()
        for sign in (1, -1)
    ]
    assert sum(both) / 2 == pytest.approx(expected, rel=0.03)


def test_the_loss_is_summed_over_samples_and_positions() -> None:
    # Of two classes as likely as each other, each position gives 1 / sqrt(p), whatever the signs.
    even = torch.tensor([0.5, 0.5]).expand(4, 6, 2)
    gradient = _gradients(_likelihood("categorical", is_probability=True), even)
    torch.testing.assert_close(gradient.abs(), torch.full((4, 6, 2), math.sqrt(2)))
    sure = torch.tensor([50.0, 0.0, 0.0]).expand(4, 6, 3)
    assert _gradients(_likelihood("categorical"), sure).abs().max() < 1e-6


def test_one_draw_tells_of_every_class() -> None:
    # Drawn labels would leave out the classes that hardly ever come up.
    logits = torch.tensor([8.0, 0.0, 1.0, -1.0]).expand(1, 4)
    gradient, p = _gradients(_likelihood("categorical"), logits)[0], logits[0].softmax(0)
    assert (gradient[1:].abs() > 0.9 * (p - p.square()).sqrt()[1:]).all()


def test_classes_of_maps_are_drawn_along_the_second_dimension(rng: torch.Generator) -> None:
    gradient = _gradients(_likelihood("categorical", dim=1), torch.randn((2, 3, 4, 5), generator=rng))
    # Softmax minus one-hot sums to zero over the classes, and over nothing else.
    torch.testing.assert_close(gradient.sum(1), torch.zeros(2, 4, 5), rtol=0, atol=1e-6)
    assert gradient.sum(-1).abs().max() > 0.1


@pytest.mark.parametrize("name", ["softmax", "bernoulli", "gaussian"])
def test_draws_follow_the_generator(name: str) -> None:
    likelihood, value = _CASES[name]
    values = value.expand(30, *value.shape)
    assert torch.equal(_gradients(likelihood, values, 1), _gradients(likelihood, values, 1))
    assert not torch.equal(_gradients(likelihood, values, 1), _gradients(likelihood, values, 2))


@pytest.mark.parametrize("family", ["categorical", "bernoulli", "gaussian"])
def test_tokens_that_do_not_count_give_no_gradient(family: Family, rng: torch.Generator) -> None:
    likelihood = _likelihood(family, scale=torch.ones(4, 3))
    mask = torch.tensor([[True, True, False, False], [True, False, True, True]])
    gradient = _gradients(likelihood, torch.randn((2, 4, 3), generator=rng), mask=mask)
    assert (gradient[~mask] == 0).all()
    assert (gradient[mask].abs().sum(-1) > 0).all()


def test_half_precision_outputs_go_through(rng: torch.Generator) -> None:
    values = torch.randn((4, 3), generator=rng).bfloat16()
    assert _gradients(_likelihood("categorical"), values).dtype == torch.bfloat16


def test_losses_of_several_outputs_add_up() -> None:
    model = _one(_likelihood("categorical", is_probability=True))
    tensors = {"a": torch.full((3, 2), 0.5), "b": torch.full((3, 4), 0.25)}
    together = sampled_loss(
        Likelihood(outputs={"a": model, "b": model}), tensors, torch.Generator().manual_seed(3), None
    )
    generator = torch.Generator().manual_seed(3)
    apart = [
        sampled_loss(Likelihood(outputs={name: model}), {name: tensors[name]}, generator, None).item()
        for name in ("a", "b")
    ]
    assert together.item() == pytest.approx(sum(apart), rel=1e-5)


def test_without_outputs_there_is_no_loss(rng: torch.Generator) -> None:
    empty = Likelihood(outputs={})
    with pytest.raises(OutputError, match="no output to draw a loss from; pass outputs="):
        sampled_loss(empty, {}, rng, None)
    with pytest.raises(OutputError, match="no output to compare; pass outputs="):
        divergence(empty, {}, {}, None)


def test_a_gaussian_without_spread_is_refused(rng: torch.Generator) -> None:
    with pytest.raises(OutputError, match="a gaussian output without spread"):
        sampled_loss(_likelihood("gaussian"), {"": torch.zeros(2, 3)}, rng, None)


# --- the divergence ---


@pytest.mark.parametrize("name", _CASES)
def test_equal_outputs_do_not_diverge(name: str) -> None:
    likelihood, value = _CASES[name]
    values = value.expand(3, *value.shape)
    assert divergence(likelihood, {"": values}, {"": values.clone()}, None).tolist() == [0, 0, 0]


def test_categorical_divergence_is_the_kl_by_hand() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    by_probability = divergence(_likelihood("categorical", is_probability=True), {"": p}, {"": q}, None)
    # A shift of the logits changes nothing.
    by_logits = divergence(_likelihood("categorical"), {"": p.log() + 3}, {"": q.log() - 7}, None)
    assert by_probability.item() == pytest.approx(expected, rel=1e-5)
    assert by_logits.item() == pytest.approx(expected, rel=1e-5)


def test_categorical_divergence_is_summed_over_positions() -> None:
    p = torch.tensor([0.9, 0.1]).log().view(1, 2, 1, 1).expand(3, 2, 4, 5)
    q = torch.tensor([0.5, 0.5]).log().view(1, 2, 1, 1).expand(3, 2, 4, 5)
    one = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    result = divergence(_likelihood("categorical", dim=1), {"": p}, {"": q}, None)
    assert result.tolist() == pytest.approx([20 * one] * 3, rel=1e-5)


@pytest.mark.parametrize("is_probability", [False, True])
def test_bernoulli_divergence_is_the_kl_by_hand(is_probability: bool) -> None:
    p, q = torch.tensor([[0.8, 0.5]]), torch.tensor([[0.6, 0.5]])
    expected = 0.8 * math.log(0.8 / 0.6) + 0.2 * math.log(0.2 / 0.4)
    before, after = (p, q) if is_probability else (p.logit(), q.logit())
    likelihood = _likelihood("bernoulli", is_probability=is_probability)
    assert divergence(likelihood, {"": before}, {"": after}, None).item() == pytest.approx(expected, rel=1e-5)


def test_gaussian_divergence_is_the_squared_error_in_units_of_the_spread() -> None:
    likelihood = _likelihood("gaussian", scale=torch.tensor([2.0, 10.0]))
    before, after = torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.tensor([[5.0, 11.0], [0.0, 0.0]])
    assert divergence(likelihood, {"": before}, {"": after}, None).tolist() == [2.5, 0.0]


def test_gaussian_outputs_of_another_length_share_one_spread() -> None:
    likelihood = _likelihood("gaussian", scale=torch.tensor([3.0, 4.0, 5.0]))
    before, after = torch.zeros(1, 2), torch.ones(1, 2)
    result = divergence(likelihood, {"": before}, {"": after}, None)
    assert result.item() == pytest.approx(3 / 50)


@pytest.mark.parametrize("family", ["categorical", "bernoulli", "gaussian"])
def test_tokens_that_do_not_count_do_not_diverge(family: Family, rng: torch.Generator) -> None:
    likelihood = _likelihood(family, scale=torch.ones(4, 3))
    before = torch.randn((2, 4, 3), generator=rng)
    mask = torch.tensor([[True, True, False, False], [True, False, True, True]])
    noise = torch.randn(before.shape, generator=rng)
    outside = before + noise * ~mask[:, :, None]
    inside = before + noise * mask[:, :, None]
    assert divergence(likelihood, {"": before}, {"": outside}, mask).tolist() == [0, 0]
    masked = divergence(likelihood, {"": before}, {"": before + noise}, mask)
    torch.testing.assert_close(masked, divergence(likelihood, {"": before}, {"": inside}, None))
    assert (masked > 0).all()


def test_a_mask_of_another_shape_is_ignored(rng: torch.Generator) -> None:
    before, after = torch.randn((2, 2, 3), generator=rng), torch.randn((2, 2, 3), generator=rng)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    likelihood = _likelihood("categorical")
    with_mask = divergence(likelihood, {"": before}, {"": after}, mask)
    assert torch.equal(with_mask, divergence(likelihood, {"": before}, {"": after}, None))


def test_divergences_of_several_outputs_add_up(rng: torch.Generator) -> None:
    categorical, gaussian = (
        _one(_likelihood("categorical")),
        _one(_likelihood("gaussian", scale=torch.ones(2))),
    )
    both = Likelihood(outputs={"a": categorical, "b": gaussian})
    before = {"a": torch.randn((3, 4), generator=rng), "b": torch.randn((3, 2), generator=rng)}
    after = {"a": torch.randn((3, 4), generator=rng), "b": torch.randn((3, 2), generator=rng)}
    parts = [
        divergence(Likelihood(outputs={name: model}), before, after, None)
        for name, model in both.outputs.items()
    ]
    torch.testing.assert_close(divergence(both, before, after, None), parts[0] + parts[1])


def test_what_is_advised_is_allowed(rng: torch.Generator) -> None:
    edges = {"edges": torch.randn((30, 1, 12, 12), generator=rng)}
    (reason,) = choose_likelihood(edges, "auto").reasons
    assert reason == (
        "'edges' [1, 12, 12]: gaussian, its maps have one channel; if that is wrong, pass e.g. "
        "likelihood={'edges': 'bernoulli'}"
    )
    (reason,) = choose_likelihood({"": torch.randn((30, 36, 1), generator=rng)}, "auto").reasons
    assert reason.endswith("likelihood='bernoulli'")
    (reason,) = choose_likelihood({"": 0.3 + 0.4 * torch.rand((30, 4), generator=rng)}, "auto").reasons
    assert "not close enough to one of them for yes or no" in reason
    assert reason.endswith("likelihood='bernoulli'")


def test_spreads_are_told_in_words_where_an_element_never_varies(rng: torch.Generator) -> None:
    values = torch.rand((60, 5), generator=rng) * torch.tensor([1.0, 2.0, 3.0, 4.0, 0.0])
    (reason,) = choose_likelihood({"": 3 * values}, "auto").reasons
    assert "its elements differ in spread, some hardly vary at all;" in reason
    (reason,) = choose_likelihood({"": 3 * values + torch.randn((60, 5), generator=rng) / 20}, "auto").reasons
    assert "its elements differ in spread, the largest is " in reason


def test_maps_of_one_size_with_other_channels_are_read_apart(rng: torch.Generator) -> None:
    masks = _scores((20, 24, 24, 4), rng).movedim(-1, 1)
    depths = 20 * torch.rand((20, 1, 24, 24), generator=rng)
    outputs = choose_likelihood({"0": masks, "1": depths}, "auto").outputs
    assert [outputs[path].family for path in ("0", "1")] == ["categorical", "gaussian"]
    assert outputs["0"].dim == 1


def test_every_output_of_a_list_is_read_whatever_the_sizes(rng: torch.Generator) -> None:
    shapes = [(4, 24, 24), (4, 24, 24), (4, 12, 12), (1, 24, 24)]
    values = {str(index): torch.randn((20, *shape), generator=rng) for index, shape in enumerate(shapes)}
    assert set(choose_likelihood(values, "auto").outputs) == {"0", "1", "2", "3"}


# --- outputs without values ---


@pytest.mark.parametrize("shape", [(0,), (0, 5), (5, 0), (5, 0, 4), (0, 4, 4)])
@pytest.mark.parametrize("choice", ["auto", "gaussian", "bernoulli"])
def test_an_output_without_values_tells_nothing(
    shape: tuple[int, ...], choice: LikelihoodChoice, rng: torch.Generator
) -> None:
    alone, none = torch.randn((20, 3), generator=rng), torch.zeros(20, *shape)
    likelihood = choose_likelihood({"y": alone, "none": none}, choice)
    if choice == "auto":
        assert likelihood.outputs["none"].family == "gaussian"
        assert any("it holds no values" in reason for reason in likelihood.reasons)
    found = divergence(
        likelihood,
        Picked(None, {"y": alone, "none": none}),
        Picked(None, {"y": 2 * alone, "none": none}),
        None,
    )
    expected = divergence(
        choose_likelihood({"y": alone}, choice),
        Picked(None, {"y": alone}),
        Picked(None, {"y": 2 * alone}),
        None,
    )
    assert found.isfinite().all()
    torch.testing.assert_close(found, expected)
