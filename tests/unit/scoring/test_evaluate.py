# SPDX-License-Identifier: Apache-2.0
import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from slimrank import ScoreError
from slimrank.capture import describe_layers
from slimrank.methods import fit_pair, weights_target
from slimrank.records import AxisUnits, ChannelMap, GroupSpec, TensorSpec
from slimrank.scoring import Evaluator, GroupTrial, LayerTrial
from slimrank.surgery import dense_weight


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.last = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)).relu())


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval().requires_grad_(requires_grad=False)


def trial(model: nn.Module, name: str = "first", rank: int = 2) -> LayerTrial:
    spec = next(spec for spec in describe_layers(model) if spec.name == name)
    layer = model.get_submodule(name)
    pair = fit_pair(spec, "linear", rank, weights_target(dense_weight(layer)), alternations=0)
    return LayerTrial(
        spec=spec, method="weight_svd", keep_ratio=0.5, pair=pair, bias=layer.bias.detach().double()
    )


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def total(model: nn.Module) -> float:
    return float(model(X).sum())


@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_the_layer_is_swapped_and_put_back(max_bytes: int) -> None:
    model = net()
    evaluator = Evaluator(model, total, max_bytes=max_bytes)
    before, layer = evaluator.baseline(), model.first
    seen: list[type] = []

    def score(model: nn.Module) -> float:
        seen.append(type(model.first))
        assert not any(module.training for module in model.modules())
        return total(model)

    evaluator = Evaluator(model, score, max_bytes=max_bytes)
    lower = evaluator.score(trial(model))
    assert seen == [nn.Sequential]
    assert model.first is layer
    assert lower != before
    assert evaluator.score(trial(model, rank=6)) == pytest.approx(before, abs=1e-5)
    assert evaluator.baseline() == before
    assert all("forward" not in vars(module) for module in model.modules())


def group_trial(model: nn.Module, kept: tuple[int, ...], *, fitted: bool = True) -> GroupTrial:
    places = {
        "first.weight": (0, "output"),
        "first.bias": (0, "output"),
        **{f"norm.{name}": (0, "output") for name in ("weight", "bias", "running_mean", "running_var")},
        "last.weight": (1, "input"),
    }
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    axis = {
        name: AxisUnits(group="first", dim=dim, role=role, units=tuple(range(8)))  # type: ignore[arg-type]
        for name, (dim, role) in places.items()
    }
    channels = ChannelMap(
        groups={
            "first": GroupSpec(name="first", units=8, unit_width=1, producers=("first",), consumers=("last",))
        },
        tensors={
            name: TensorSpec(
                name=name,
                shape=tuple(named[name].shape),
                itemsize=4,
                is_parameter="running" not in name,
                positions=1,
                axes=(axis[name],),
            )
            for name in places
        },
    )
    weight, bias = model.last.weight.detach()[:, list(kept)] * 2, model.last.bias.detach() + 1
    fits = {"last": (weight.double(), bias.double())} if fitted else {}
    return GroupTrial(name="first", kept=kept, channels=channels, fits=fits, start="first")


def sizes_and_tensors(model: nn.Module) -> dict[str, object]:
    sizes = {
        f"{name}.{key}": value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int)
    }
    return sizes | {name: id(t) for name, t in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
@pytest.mark.parametrize("fitted", [True, False])
def test_the_group_is_slimmed_and_put_back(max_bytes: int, fitted: bool) -> None:
    model = net()
    before = sizes_and_tensors(model)
    kept = (1, 2, 6)
    with torch.no_grad():
        hidden = model.norm(model.first(X)).relu()[:, list(kept)]
        weight = model.last.weight[:, list(kept)]
        expected = hidden @ (2 * weight if fitted else weight).T + model.last.bias + float(fitted)
    seen: list[tuple[int, ...]] = []

    def score(model: nn.Module) -> float:
        seen.append((model.first.out_features, model.norm.num_features, model.last.in_features))
        assert not any(p.requires_grad for p in model.parameters())
        return total(model)

    evaluator = Evaluator(model, score, max_bytes=max_bytes)
    trial = group_trial(model, kept, fitted=fitted)
    assert [evaluator.score(trial) for _ in range(3)] == pytest.approx([float(expected.sum())] * 3, rel=1e-5)
    assert seen[-1] == (3, 3, 3)
    assert sizes_and_tensors(model) == before
    entry = trial.entry(0.5)
    assert (entry.method, entry.form, entry.rank) == ("channel_pruning", "channels", 3)
    assert (entry.keep_ratio, entry.score) == (0.375, 0.5)


def test_a_function_that_changes_a_slimmed_model_is_refused() -> None:
    model = net()

    def score(model: nn.Module) -> float:
        model.last.weight.mul_(2)
        return 1.0

    message = (
        r"^group 'first', channel_pruning 2 of 8 units: score_fn changed the model \(parameter 'last.wei"
    )
    with pytest.raises(ScoreError, match=message):
        Evaluator(model, score, max_bytes=0).score(group_trial(model, (0, 4)))
    assert model.last.in_features == 8


@pytest.mark.parametrize(
    "value", [1, 0.5, True, np.float32(0.5), np.int64(3), torch.tensor(0.5), torch.tensor([[2.0]])]
)
def test_anything_that_float_takes_is_a_score(value: object) -> None:
    score: Callable[[nn.Module], float] = lambda _: value  # type: ignore[assignment,return-value]  # noqa: E731
    assert Evaluator(net(), score, max_bytes=0).baseline() == float(value)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, r"score_fn returned a NoneType; return one number"),
        ("0.5", r"score_fn returned a str; return one number"),
        ((0.5, 0.6), r"score_fn returned a tuple; return one number"),
        (torch.ones(2), r"score_fn returned a Tensor; return one number"),
        (1j, r"score_fn returned a complex; return one number"),
        (float("nan"), r"score_fn returned nan; return a finite number"),
        (torch.tensor(float("inf")), r"score_fn returned inf; return a finite number"),
    ],
)
def test_other_values_are_refused(value: object, message: str) -> None:
    model = net()
    evaluator = Evaluator(model, lambda _: value, max_bytes=0)  # type: ignore[arg-type,return-value]
    with pytest.raises(ScoreError, match=rf"^the untouched model: {message}"):
        evaluator.baseline()
    with pytest.raises(ScoreError, match=rf"^layer 'first', weight_svd linear rank 2: {message}"):
        evaluator.score(trial(model))
    assert isinstance(model.first, nn.Linear)


def test_errors_of_the_function_name_the_layer() -> None:
    model = net()

    def score(model: nn.Module) -> float:
        raise LookupError("no labels")

    with pytest.raises(
        ScoreError, match=r"layer 'last'.*score_fn failed with LookupError: no labels"
    ) as info:
        Evaluator(model, score, max_bytes=0).score(trial(model, "last"))
    assert isinstance(info.value.__cause__, LookupError)
    assert isinstance(model.last, nn.Linear)


def test_ctrl_c_passes() -> None:
    model = net()

    def score(model: nn.Module) -> float:
        model(X)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Evaluator(model, score, max_bytes=1 << 20).score(trial(model, "last"))
    assert isinstance(model.last, nn.Linear)
    assert "forward" not in vars(model)


def _train(model: nn.Module) -> None:
    model.train()
    model(X)
    model.eval()


def _half(model: nn.Module) -> None:
    model.half().float()


CHANGES: dict[str, tuple[Callable[[nn.Module], object], str]] = {
    "in place": (lambda m: m.last.weight.mul_(2), "parameter 'last.weight'"),
    "statistics": (_train, "buffer 'norm.running_mean' and 2 more"),
    "behind torch's back": (lambda m: m.last.weight.data.neg_(), "parameter 'last.weight'"),
    "mode": (lambda m: m.norm.train(), "module 'norm'"),
    "all modes": (lambda m: m.train(), "the model itself and "),
    "new parameter": (
        lambda m: setattr(m.last, "bias", nn.Parameter(m.last.bias.clone())),
        "parameter 'last.bias'",
    ),
    "new buffer": (lambda m: m.register_buffer("extra", torch.ones(1)), "buffer 'extra'"),
    "new module": (lambda m: setattr(m, "norm", nn.Identity()), "module 'norm' and "),
    "hook": (lambda m: m.norm.register_forward_hook(lambda *_: None), "module 'norm'"),
    "dtype and back": (_half, "parameter 'first"),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("max_bytes", [0, 1 << 20])
def test_a_function_that_changes_the_model_is_refused(name: str, max_bytes: int) -> None:
    change, message = CHANGES[name]
    model = net()

    def score(model: nn.Module) -> float:
        change(model)
        return 1.0

    with pytest.raises(ScoreError, match=rf"^layer 'first'.*score_fn changed the model \({message}"):
        Evaluator(model, score, max_bytes=max_bytes).score(trial(model))


def test_a_function_may_work_on_a_copy_or_put_things_back() -> None:
    model = net()

    def score(model: nn.Module) -> float:
        other = copy.deepcopy(model).train()
        other(X)
        handle = model.norm.register_forward_hook(lambda *_: None)
        value = total(model) + total(other.eval())
        handle.remove()
        return value

    evaluator = Evaluator(model, score, max_bytes=1 << 20)
    first = trial(model, "last")
    values = [evaluator.score(first) for _ in range(4)]
    assert values == [Evaluator(net(), score, max_bytes=0).score(first)] * 4
