# SPDX-License-Identifier: Apache-2.0
"""The loop that both recipes share: options, guard, schedule, chance, records."""

import functools
import logging
import math
from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from seams import share_of_rate
from slimrank.recover import Epoch, finetune

Pairs = list[tuple[Tensor, Tensor]]


@pytest.fixture
def model(rng: torch.Generator) -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.1), nn.Linear(12, 3))
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
    return model.eval()


@pytest.fixture
def pairs(rng: torch.Generator) -> Pairs:
    rule = torch.randn(6, 3, generator=rng)
    inputs = [torch.randn(16, 6, generator=rng) for _ in range(6)]
    return [(x, (x @ rule).argmax(1)) for x in inputs]


tune = functools.partial(finetune, progress=False)
LOSS = nn.CrossEntropyLoss()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


# --- options ---


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": 0}, "epochs=0; give a whole number from 1"),
        ({"epochs": 1.5}, "epochs=1.5; give a whole number from 1"),
        ({"epochs": True}, "epochs=True; give a whole number"),
        ({"seed": "a"}, "seed='a'; give a whole number"),
        ({"lr": 0}, "lr=0; give a positive number"),
        ({"lr": -1e-4}, "lr=-0.0001; give a positive number"),
        ({"lr": float("nan")}, "lr=nan; give a positive number"),
        ({"lr": "fast"}, "lr='fast'; give a positive number"),
        ({"weight_decay": -1}, "weight_decay=-1; give a number from 0"),
        ({"clip_norm": 0}, "clip_norm=0; give a positive number, or None for no clipping"),
        ({"norms": "thawed"}, "norms='thawed'; it is one of 'frozen', 'reestimated'"),
        ({"schedule": "step"}, "schedule='step'; it is one of 'cosine', 'constant'"),
        ({"on_epoch": 3}, "on_epoch is a int; give a function, or leave it out"),
        ({"optimizer": "sgd"}, "optimizer is a str; give a function"),
        ({"optimizer": lambda p: None}, r"optimizer cannot be called as optimizer\(parameters, lr=, weight"),
        ({"optimizer": lambda p, **_: 3}, "optimizer made a int; make a torch.optim.Optimizer"),
        (
            {"optimizer": torch.optim.SGD([torch.ones(1, requires_grad=True)])},
            "optimizer is a SGD that exists already, .* give what makes one, e.g. optimizer=functools",
        ),
    ],
)
def test_an_option_out_of_range_is_refused_and_nothing_changes(
    options: Mapping[str, object], words: str, model: nn.Module, pairs: Pairs
) -> None:
    before = state(model)
    with pytest.raises(sr.OptionError, match=words):
        tune(model, pairs, LOSS, in_place=True, **options)  # type: ignore[arg-type]
    assert same(before, state(model))
    assert not any(module.training for module in model.modules())


def test_a_model_that_cannot_be_trained_is_refused(model: nn.Module, pairs: Pairs) -> None:
    with pytest.raises(sr.OptionError, match="model is a str; give a torch"):
        tune("net", pairs, LOSS)  # type: ignore[arg-type]
    with pytest.raises(
        sr.ModelError, match=r"no parameter of Linear is trainable; call model.requires_grad_"
    ):
        tune(nn.Linear(6, 3).requires_grad_(requires_grad=False), pairs, LOSS)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(
            sr.ModelError, match=r"0.weight is b?float16, .* train copy.deepcopy\(model\).float"
        ):
            tune(nn.Sequential(nn.Linear(6, 3)).to(dtype), pairs, LOSS)
    with torch.inference_mode():
        made = nn.Linear(6, 3)
    with pytest.raises(
        sr.ModelError, match=r"made under torch.inference_mode, so it cannot be trained in place"
    ):
        tune(made, pairs, LOSS, in_place=True)
    assert isinstance(tune(made, pairs, LOSS), nn.Linear)


# --- the guard ---


def test_training_helps_and_the_best_state_is_returned(model: nn.Module, pairs: Pairs) -> None:
    seen: list[Epoch] = []
    tuned = tune(model, pairs, LOSS, epochs=12, lr=0.03, on_epoch=seen.append)
    best = min(seen, key=lambda epoch: epoch.held_out_loss)
    assert best.held_out_loss < 0.8 * best.held_out_before
    held_out = {"loss": math.nan}
    tune(tuned, pairs, LOSS, lr=1e-9, on_epoch=lambda e: held_out.update(loss=e.held_out_before))
    assert held_out["loss"] == best.held_out_loss


@pytest.mark.parametrize("in_place", [True, False])
def test_never_worse_than_what_came_in(
    in_place: bool, model: nn.Module, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    before = state(model)
    tuned = tune(model, pairs, LOSS, epochs=2, lr=1e4, in_place=in_place)
    assert same(before, state(tuned))
    assert (tuned is model) is in_place
    assert "no epoch had a lower held-out loss than what came in" in caplog.text


def test_a_run_that_diverges_stops_and_keeps_the_best(
    model: nn.Module, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter(range(10_000))

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        # One held-out batch before, five steps and one after the first epoch.
        broken = 1.0 if next(calls) < 8 else math.nan
        return LOSS(outputs, targets) * broken

    seen: list[Epoch] = []
    tuned = tune(model, pairs, loss_fn, epochs=5, lr=0.01, on_epoch=seen.append)
    assert [epoch.is_best for epoch in seen] == [True]
    loss: list[float] = []
    tune(tuned, pairs, LOSS, lr=1e-9, on_epoch=lambda e: loss.append(e.held_out_before))
    assert loss == [seen[0].held_out_loss]
    assert (
        "the training loss of epoch 2 is nan; training stopped, and the state with the lowest" in caplog.text
    )


def test_a_held_out_loss_that_is_no_number_stops_it_too(
    model: nn.Module, pairs: Pairs, caplog: pytest.LogCaptureFixture
) -> None:
    calls = iter(range(10_000))
    before = state(model)
    seen: list[Epoch] = []
    tuned = tune(
        model,
        pairs,
        # One batch before, five steps, one after the first epoch.
        lambda o, t: LOSS(o, t) * (1.0 if next(calls) != 6 else math.inf),
        epochs=5,
        on_epoch=seen.append,
    )
    assert [epoch.held_out_loss for epoch in seen] == [math.inf]
    assert same(before, state(tuned))
    assert "the held-out loss of epoch 1 is inf; training stopped" in caplog.text


def test_a_model_without_a_loss_to_compare_is_refused(model: nn.Module, pairs: Pairs) -> None:
    with pytest.raises(sr.NonFiniteError, match="held-out loss of the model that came in is nan"):
        tune(model, pairs, lambda o, t: LOSS(o, t) * math.nan)


def test_an_error_on_the_way_leaves_the_best_state(model: nn.Module, pairs: Pairs) -> None:
    seen: list[Epoch] = []

    def stop(epoch: Epoch) -> None:
        seen.append(epoch)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    modes = [module.training for module in model.modules()]
    best = state(tune(model, pairs, LOSS, epochs=3, lr=0.01, on_epoch=None))
    with pytest.raises(KeyboardInterrupt):
        tune(model, pairs, LOSS, epochs=3, lr=0.01, in_place=True, on_epoch=stop)
    assert seen[1].is_best
    assert not same(best, state(model))
    loss: list[float] = []
    tune(model, pairs, LOSS, lr=1e-9, on_epoch=lambda e: loss.append(e.held_out_before))
    assert loss == [seen[1].held_out_loss]
    assert [module.training for module in model.modules()] == modes


def test_one_batch_only_is_said(model: nn.Module, pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    tune(model, pairs[:1], LOSS)
    assert "there is one batch only; it is trained on and judges as well" in caplog.text


def test_losses_are_means_over_samples_not_batches(model: nn.Module, pairs: Pairs) -> None:
    x, y = pairs[0]
    judges = [(x[:15], y[:15]), (x[15:], y[15:])]
    seen: list[Epoch] = []
    tune(model, pairs[1:], LOSS, holdout=judges, on_epoch=seen.append)
    with torch.no_grad():
        assert seen[0].held_out_before == pytest.approx(float(LOSS(model(x), y)), rel=1e-6)
    plain = nn.Linear(6, 3)
    tune(plain, judges, LOSS, lr=1e-12, holdout=judges, on_epoch=seen.append)
    with torch.no_grad():
        assert seen[1].training_loss == pytest.approx(float(LOSS(plain(x), y)), rel=1e-6)


# --- what stays as it was ---


def test_the_callers_model_and_chance_are_not_touched(model: nn.Module, pairs: Pairs) -> None:
    model[4].train()
    model[0].bias.requires_grad_(requires_grad=False)
    model[0].weight.grad = torch.ones(12, 6)
    before, grad = state(model), model[0].weight.grad
    chance = torch.get_rng_state()
    tuned = tune(model, pairs, LOSS, epochs=3, lr=0.05)
    assert torch.equal(chance, torch.get_rng_state())
    assert same(before, state(model))
    assert model[0].weight.grad is grad
    assert [m.training for m in tuned.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in tuned.parameters()] == [p.requires_grad for p in model.parameters()]
    assert not same(before, state(tuned))
    assert torch.equal(tuned[0].bias, model[0].bias)
    assert not any(key.endswith("hooks") and value for m in tuned.modules() for key, value in vars(m).items())


def test_in_place_ends_in_the_same_tensors(model: nn.Module, pairs: Pairs) -> None:
    copy = tune(model, pairs, LOSS, epochs=3, lr=0.05)
    tensors = [*model.parameters(), *model.buffers()]
    grad = model[0].weight.grad = torch.ones(12, 6)
    tuned = tune(model, pairs, LOSS, epochs=3, lr=0.05, in_place=True)
    assert tuned is model
    assert all(a is b for a, b in zip([*model.parameters(), *model.buffers()], tensors, strict=True))
    assert same(state(copy), state(model))
    assert model[0].weight.grad is grad


def test_works_where_gradients_are_off(model: nn.Module, pairs: Pairs) -> None:
    wanted = state(tune(model, pairs, LOSS, lr=0.01))
    with torch.no_grad():
        assert same(wanted, state(tune(model, pairs, LOSS, lr=0.01)))
    with torch.inference_mode():
        assert same(wanted, state(tune(model, pairs, LOSS, lr=0.01)))


def test_a_seed_fixes_everything(model: nn.Module, pairs: Pairs) -> None:
    runs = []
    for seed in (0, 0, 1):
        torch.randn(3)
        runs.append(state(tune(model, pairs, LOSS, epochs=2, lr=0.01, seed=seed)))
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


# --- norms ---


def test_frozen_statistics_stay_bit_for_bit_and_their_gains_train(model: nn.Module, pairs: Pairs) -> None:
    tuned = tune(model, pairs, LOSS, epochs=3, lr=0.05)
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(getattr(tuned[1], name), getattr(model[1], name))
    assert not torch.equal(tuned[1].weight, model[1].weight)


def test_reestimated_statistics_are_those_of_the_training_batches(model: nn.Module, pairs: Pairs) -> None:
    tuned = tune(model, pairs, LOSS, epochs=3, lr=0.05, norms="reestimated", holdout=pairs[:1])
    with torch.no_grad():
        seen = [tuned[0](x) for x, _ in pairs]
    torch.testing.assert_close(tuned[1].running_mean, torch.stack([y.mean(0) for y in seen]).mean(0))
    torch.testing.assert_close(tuned[1].running_var, torch.stack([y.var(0) for y in seen]).mean(0))
    assert tuned[1].momentum == model[1].momentum
    assert not any(module.training for module in tuned.modules())


# --- schedule and optimiser ---


def test_the_rate_rises_shortly_and_falls_to_nothing() -> None:
    rates = [share_of_rate(step, 200, "cosine") for step in range(200)]
    assert rates[:10] == pytest.approx([(i + 1) / 11 for i in range(10)])
    assert rates[10] == 1
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-3
    assert {share_of_rate(step, 200, "constant") for step in range(10, 200)} == {1.0}
    assert share_of_rate(0, 1, "cosine") == 1


@pytest.mark.parametrize(
    "make", [torch.optim.SGD, functools.partial(torch.optim.SGD, momentum=0.9), torch.optim.Adagrad]
)
def test_another_optimizer(
    make: Callable[..., torch.optim.Optimizer], model: nn.Module, pairs: Pairs
) -> None:
    seen: list[Epoch] = []
    tune(model, pairs, LOSS, epochs=2, lr=0.1, optimizer=make, on_epoch=seen.append, schedule="constant")
    assert seen[-1].held_out_loss < seen[-1].held_out_before
    assert [epoch.learning_rate for epoch in seen] == [0.1, 0.1]


def test_gradients_are_clipped(model: nn.Module, pairs: Pairs) -> None:
    def moved(clip_norm: float | None) -> float:
        def loud(o: Tensor, t: Tensor) -> Tensor:
            return LOSS(o, t) * 100

        tuned = tune(model, pairs[:1], loud, lr=1e-4, optimizer=torch.optim.SGD, clip_norm=clip_norm)
        steps = zip(tuned.parameters(), model.parameters(), strict=True)
        return float(torch.cat([(a - b).detach().flatten() for a, b in steps]).norm())

    assert moved(1.0) == pytest.approx(1e-4, rel=1e-2)
    assert moved(None) > 1e-3


# --- gradients ---


@pytest.mark.parametrize(
    "loss_fn", [lambda o, t: o.detach().sum(), lambda o, t: torch.ones((), requires_grad=True) * 2]
)
def test_a_loss_without_gradient_is_refused_before_the_first_step(
    loss_fn: Callable[..., Tensor], model: nn.Module, pairs: Pairs
) -> None:
    before = state(model)
    with pytest.raises(
        sr.GradientError, match="finetune: no gradient reaches a trainable parameter from the"
    ):
        tune(model, pairs, loss_fn, in_place=True, norms="reestimated")
    assert same(before, state(model))


# --- records ---


def test_every_epoch_is_told(model: nn.Module, pairs: Pairs, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Epoch] = []
    with caplog.at_level(logging.INFO, "slimrank.recover"):
        tune(model, pairs, LOSS, epochs=3, lr=0.01, on_epoch=seen.append)
    assert [epoch.epoch for epoch in seen] == [1, 2, 3]
    assert all(epoch.seconds > 0 and math.isfinite(epoch.training_loss) for epoch in seen)
    assert len({epoch.held_out_before for epoch in seen}) == 1
    rates = [epoch.learning_rate for epoch in seen]
    assert 0.01 > rates[0] > rates[1] > rates[2] > 0
    assert "finetune: epoch 3 of 3: training loss" in caplog.text
    assert "best so far" in caplog.text
