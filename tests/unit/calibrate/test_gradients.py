# SPDX-License-Identifier: Apache-2.0
"""Gradients of one pass over the data, against loops over single samples written out by hand."""

import contextlib
from collections.abc import Callable, Iterable, Mapping

import pytest
import torch
from calibrate_nets import Twice, feed_of, fill, specs_of, vectors
from torch import Tensor, nn
from torch.nn import functional

import seams
from slimrank import GradientError, NonFiniteError
from slimrank.calibrate import (
    Feed,
    GradientOptions,
    Likelihood,
    OutputModel,
    collect_gradients,
    layers_that_count,
    output_rows,
)
from slimrank.forward import as_batch
from slimrank.records import LayerSpec
from slimrank.surgery import quiet_copy

_CATEGORICAL = Likelihood(
    outputs={"": OutputModel(family="categorical", dim=-1, is_probability=False, scale=None)}
)


class _Conv(nn.Module):
    """A ReLU that works in place on the output of a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu_(self.conv(x))
        return self.head(x.mean((2, 3)))


class _Tokens(nn.Module):
    """Integer inputs: nothing in front of the first layer can carry a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 5)
        self.up = nn.Linear(5, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.up(self.table(ids)).tanh().mean(1))


def _images(rng: torch.Generator) -> Tensor:
    return torch.randn((9, 2, 5, 4), dtype=torch.float64, generator=rng)


def _ids(rng: torch.Generator) -> Tensor:
    return torch.randint(0, 7, (9, 3), generator=rng)


_Maker = Callable[[torch.Generator], Tensor]
_NETS: Mapping[str, tuple[type[nn.Module], _Maker]] = {
    "in-place activation": (_Conv, _images),
    "integer inputs": (_Tokens, _ids),
    "a layer called twice": (Twice, vectors),
}


def _fixed_loss(_likelihood: object, outputs: Mapping[str, Tensor], *_: object) -> Tensor:
    """Cross-entropy against the least likely class, summed: a label-free loss without chance in it."""
    logits = outputs[""]
    return functional.cross_entropy(logits, logits.detach().argmin(-1), reduction="sum")


def _by_hand(model: nn.Module, x: Tensor, specs: Iterable[LayerSpec]) -> dict[str, Tensor]:
    """Sum of g g^T over positions and calls, averaged over samples: one forward, one backward a sample."""
    totals: dict[str, Tensor] = {}
    kept: list[tuple[LayerSpec, Tensor]] = []

    def keep(spec: LayerSpec) -> Callable[[nn.Module, object, Tensor], Tensor]:
        def hook(_m: nn.Module, _i: object, y: Tensor) -> Tensor:
            y = y if y.requires_grad else y.clone().requires_grad_()
            kept.append((spec, y))
            return y.clone()

        return hook

    handles = [model.get_submodule(spec.name).register_forward_hook(keep(spec)) for spec in specs]
    for sample in x:
        kept.clear()
        logits = model(sample[None])
        loss = functional.cross_entropy(logits, logits.detach().argmin(-1))
        gradients = torch.autograd.grad(loss, [y for _, y in kept])
        for (spec, _), gradient in zip(kept, gradients, strict=True):
            rows = output_rows(spec, gradient)
            totals[spec.name] = totals.get(spec.name, 0) + rows.T @ rows / len(x)
    for handle in handles:
        handle.remove()
    return totals


def _collect(
    model: nn.Module,
    feed: Feed,
    specs: list[LayerSpec],
    draws: int = 1,
    likelihood: Likelihood = _CATEGORICAL,
) -> Mapping[str, Tensor]:
    options = GradientOptions(likelihood=likelihood, outputs=None, draws=draws)
    return collect_gradients(model, feed, specs, options, seed=0, advance=lambda _n: None)


@pytest.mark.parametrize("cut", [(9,), (4, 5), (1,) * 9], ids=str)
@pytest.mark.parametrize("draws", [1, 3])
@pytest.mark.parametrize("name", _NETS)
def test_gradients_are_those_of_single_samples(
    name: str, draws: int, cut: tuple[int, ...], rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.replace_sampled_loss(monkeypatch, _fixed_loss)
    make, inputs = _NETS[name]
    model, x = fill(make(), rng), inputs(rng)
    feed = feed_of(model, list(x.split(cut)))
    specs = specs_of(model)
    grams = _collect(model, feed, specs, draws)
    expected = _by_hand(model, x[list(feed.fit)], specs)
    assert grams.keys() == expected.keys()
    for layer, gram in grams.items():
        assert gram.dtype == torch.float32
        # float64 gradients, float32 products.
        torch.testing.assert_close(gram.double(), expected[layer], rtol=1e-5, atol=1e-7)


def test_the_model_is_left_as_it_was(rng: torch.Generator) -> None:
    model, x = fill(_Conv(), rng), _images(rng)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = x.clone()
    _collect(model, feed_of(model, [x]), specs_of(model))
    assert torch.equal(x, kept)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_gradients_of_many_draws_are_the_exact_fisher(rng: torch.Generator) -> None:
    model = fill(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), rng)
    x = vectors(rng)
    feed = feed_of(model, [x])
    p = model(x[list(feed.fit)]).softmax(-1)
    exact = torch.diag(p.mean(0)) - p.T @ p / len(p)
    gram = _collect(model, feed, specs_of(model), draws=400)["2"].double()
    # A mean of 6 x 400 terms below 1: standard error below 0.5 / sqrt(2400) = 0.01, five of them.
    torch.testing.assert_close(gram, exact, rtol=0, atol=0.05)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_gradients_reach_layers_that_the_model_runs_without(
    guard: Callable[[], contextlib.AbstractContextManager[None]], rng: torch.Generator
) -> None:
    class Guarded(Twice):
        def forward(self, x: Tensor) -> Tensor:
            with guard():
                y = self.shared(x)
            return self.head(y.tanh())

    class Plain(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.shared(x).tanh())

    guarded, plain = fill(Guarded(), rng), Plain().double().eval().requires_grad_(False)
    plain.load_state_dict(guarded.state_dict())
    feed = feed_of(guarded, [vectors(rng)])
    expected = _collect(plain, feed, specs_of(plain))
    grams = _collect(guarded, feed, specs_of(guarded))
    assert grams.keys() == expected.keys() == {"shared", "head"}
    for name, gram in grams.items():
        torch.testing.assert_close(gram, expected[name])


class _Plain(Twice):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(x).tanh())


class _Decorated(_Plain):
    """Gradients are off for all of it, and a buffer keeps a mean of what passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4, dtype=torch.float64))

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.mean.mul_(0.9).add_(y.mean(0))
        return y


class _Inferring(_Plain):
    @torch.inference_mode()
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        # The same for all classes, so that it changes no likelihood.
        y += 1
        return y


@pytest.mark.parametrize("kind", [_Decorated, _Inferring])
def test_gradients_reach_all_layers_where_the_model_switches_them_off(
    kind: type[nn.Module], rng: torch.Generator
) -> None:
    switched, plain = fill(kind(), rng), fill(_Plain(), rng)
    plain.load_state_dict(switched.state_dict(), strict=False)
    batches = list(vectors(rng).split(3))
    expected = _collect(plain, feed_of(plain, batches), specs_of(plain), draws=2)
    grams = _collect(switched, feed_of(switched, batches), specs_of(switched), draws=2)
    assert grams.keys() == expected.keys() == {"shared", "head"}
    for name, gram in grams.items():
        torch.testing.assert_close(gram, expected[name])
    assert not any(buffer.requires_grad for buffer in switched.buffers())


def test_work_that_only_goes_without_gradients_leaves_the_last_layers_some(rng: torch.Generator) -> None:
    class InPlace(_Plain):
        @torch.no_grad()
        def forward(self, x: Tensor) -> Tensor:
            y = self.shared(x)
            first, _ = y.chunk(2, -1)
            first += 1
            return self.head(y.tanh())

    model = fill(InPlace(), rng)
    assert _collect(model, feed_of(model, [vectors(rng)]), specs_of(model)).keys() == {"head"}


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor | None:
        return None


class _Faulty(_Rounded):
    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor | None:
        raise AttributeError("nothing was saved")


def test_gradients_that_arrive_as_none_count_as_zero(rng: torch.Generator) -> None:
    class Codec(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(_Rounded.apply(self.shared(x)))

    class AllRounded(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return _Rounded.apply(self.head(self.shared(x)))

    model = fill(Codec(), rng)
    assert _collect(model, feed_of(model, [vectors(rng)]), specs_of(model), draws=2).keys() == {"head"}
    model = fill(AllRounded(), rng)
    assert _collect(model, feed_of(model, [vectors(rng)]), specs_of(model)) == {}


def test_errors_of_a_backward_pass_say_what_to_do(rng: torch.Generator) -> None:
    class Codec(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(_Faulty.apply(self.shared(x)))

    model = fill(Codec(), rng)
    with pytest.raises(GradientError, match=r"failed \(nothing was saved\); pass fisher=False"):
        _collect(model, feed_of(model, [vectors(rng)]), specs_of(model))


def test_layers_count_that_change_the_chosen_outputs(rng: torch.Generator) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.box, self.strict, self.head = (nn.Linear(5, 5) for _ in range(4))

        def forward(self, x: Tensor) -> Mapping[str, Tensor]:
            y = _Rounded.apply(8 * self.body(x))
            strict = self.strict(x)
            if strict.abs().max() > 2 * x.abs().max():
                raise ValueError("too large")
            return {"logits": self.head(y), "boxes": self.box(y)}

    model = fill(Heads(), rng)
    with torch.no_grad():
        model.strict.weight.copy_(torch.eye(5))
        model.strict.bias.zero_()
    batch = as_batch(torch.randn(4, 5, dtype=torch.float64, generator=rng))
    names = ["body", "box", "strict", "head"]
    assert layers_that_count(model, batch, names, "logits") == {"body", "strict", "head"}
    assert layers_that_count(model, batch, names, "boxes") == {"body", "strict", "box"}


def test_draws_follow_the_seed(rng: torch.Generator) -> None:
    model, x = fill(Twice(), rng), vectors(rng)
    feed = feed_of(model, [x])
    options = GradientOptions(likelihood=_CATEGORICAL, outputs=None, draws=2)
    runs = [
        collect_gradients(model, feed, specs_of(model), options, seed=seed, advance=lambda _n: None)["head"]
        for seed in (0, 0, 1)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


def test_other_layers_change_no_draw(rng: torch.Generator) -> None:
    model, x = fill(_Conv(), rng), _images(rng)
    feed = feed_of(model, [x])
    conv, head = specs_of(model)
    together = _collect(model, feed, [conv, head])
    torch.testing.assert_close(_collect(model, feed, [head])["head"], together["head"])
    torch.testing.assert_close(_collect(model, feed, [conv])["conv"], together["conv"])


def test_positions_left_out_are_made_up_for(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    # Every position has the same gradient, so a part of them, scaled up, gives exactly the whole.
    seams.replace_sampled_loss(monkeypatch, lambda _likelihood, outputs, *_: outputs[""].sum())
    model = fill(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(1)), rng)
    feed = feed_of(model, [torch.zeros((3, 1, 200, 200), dtype=torch.float64)], output_elements=10**9)
    assert feed.micro_size == 1
    gram = _collect(model, feed, specs_of(model))["0"]
    torch.testing.assert_close(gram, torch.full((2, 2), 40_000.0))


def test_of_very_many_outputs_the_diagonal_is_kept(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fill(nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4)), rng)
    feed = feed_of(model, [vectors(rng)])
    whole = _collect(model, feed, specs_of(model))
    seams.keep_diagonals_above(monkeypatch, 5)
    partly = _collect(model, feed, specs_of(model))
    torch.testing.assert_close(partly["0"], whole["0"].diagonal())
    torch.testing.assert_close(partly["2"], whole["2"])


def test_half_precision_gradients_do_not_underflow(rng: torch.Generator) -> None:
    model = fill(Twice(), rng)
    # A sharp softmax: probabilities of the other classes lie below the smallest half.
    model.head.weight.mul_(6)
    x = vectors(rng)
    expected = _collect(model, feed_of(model, [x]), specs_of(model), draws=4)
    half = quiet_copy(model).half()
    grams = _collect(half, feed_of(half, [x.half()]), specs_of(half), draws=4)
    for name, gram in grams.items():
        assert gram.isfinite().all()
        # Products of a few halves: some roundings of 1e-3 on the largest entry.
        torch.testing.assert_close(gram, expected[name], rtol=0, atol=0.03 * float(expected[name].max()))


def test_layers_that_no_gradient_reaches_are_left_out(rng: torch.Generator) -> None:
    class Side(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + self.shared(x).detach().mean()

    model = fill(Side(), rng)
    assert _collect(model, feed_of(model, [vectors(rng)]), specs_of(model)).keys() == {"head"}


def test_every_sample_is_told(rng: torch.Generator) -> None:
    model, x = fill(Twice(), rng), vectors(rng)
    feed, told = feed_of(model, list(x.split(4))), []
    options = GradientOptions(likelihood=_CATEGORICAL, outputs=None, draws=1)
    collect_gradients(model, feed, specs_of(model), options, seed=0, advance=told.append)
    assert sum(told) == len(feed.fit)


def test_detached_outputs_are_refused(rng: torch.Generator) -> None:
    class Detached(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    model = fill(Detached(), rng)
    with pytest.raises(GradientError, match=r"no gradient flows from the outputs.*or pass fisher=False"):
        _collect(model, feed_of(model, [vectors(rng)]), specs_of(model))


def test_gradients_that_reach_no_layer_are_refused(rng: torch.Generator) -> None:
    class Around(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(x) + self.shared(x).detach().mean()

    model = fill(Around(), rng)
    model.head.requires_grad_(True)
    shared, _ = specs_of(model)
    with pytest.raises(GradientError, match="no gradient reached any layer; pass outputs="):
        _collect(model, feed_of(model, [vectors(rng)]), [shared])


def test_gradients_that_are_not_finite_are_refused(rng: torch.Generator) -> None:
    class Root(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.shared(x).relu() * 0).sqrt())

    model = fill(Root(), rng)
    _, head = specs = specs_of(model)
    assert _collect(model, feed_of(model, [vectors(rng)]), [head]).keys() == {"head"}
    with pytest.raises(NonFiniteError, match=r"layer 'shared': its output gradient holds nan or inf"):
        _collect(model, feed_of(model, [vectors(rng)]), specs)


class _Heard(nn.Module):
    """A recurrent layer in both directions; its outputs at all steps are read."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, 2, 2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0].mean(1))


class _ByHand(nn.Module):
    """The same, its input matrix a layer: what follows is a recurrent layer that passes its inputs on."""

    def __init__(self, heard: _Heard) -> None:
        super().__init__()
        first = [heard.rnn.weight_ih_l0, heard.rnn.weight_ih_l0_reverse]
        biases = [heard.rnn.bias_ih_l0, heard.rnn.bias_ih_l0_reverse]
        self.rnn = nn.Linear(3, 16).double()
        self.rnn.weight.data, self.rnn.bias.data = torch.cat(first), torch.cat(biases)
        self.heard = heard
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        gates, rnn = self.rnn(x), self.heard.rnn
        sides = []
        for part, end, steps in (
            (gates[..., :8], "", range(4)),
            (gates[..., 8:], "_reverse", range(3, -1, -1)),
        ):
            weight, bias = getattr(rnn, f"weight_hh_l0{end}"), getattr(rnn, f"bias_hh_l0{end}")
            h = c = x.new_zeros(len(x), 2)
            found = {}
            for step in steps:
                i, f, g, o = (part[:, step] + h @ weight.T + bias).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                found[step] = h = o.sigmoid() * c.tanh()
            sides.append(torch.stack([found[step] for step in range(4)], 1))
        second = nn.LSTM(4, 2, batch_first=True, bidirectional=True).double()
        state = {key.replace("_l1", "_l0"): value for key, value in rnn.state_dict().items() if "_l1" in key}
        second.load_state_dict(state)
        second.requires_grad_(False)
        return self.heard.head(second(torch.cat(sides, -1))[0].mean(1))


def test_gradients_of_a_recurrent_layer_are_those_of_what_its_input_matrix_makes(
    rng: torch.Generator,
) -> None:
    model = fill(_Heard(), rng)
    x = torch.randn((9, 4, 3), dtype=torch.float64, generator=rng)
    by_hand = _ByHand(model)
    torch.testing.assert_close(by_hand(x), model(x))
    module = model.rnn
    found = _collect(model, feed_of(model, [x]), specs_of(model))
    expected = _collect(by_hand, feed_of(by_hand, [x]), specs_of(by_hand)[:1])
    assert found["rnn"].shape == (16, 16)
    torch.testing.assert_close(found["rnn"], expected["rnn"])
    # The model is put back as it was.
    assert model.rnn is module
