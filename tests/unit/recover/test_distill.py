# SPDX-License-Identifier: Apache-2.0
"""What the teacher teaches: options, outputs, temperature, features."""

import copy
import dataclasses
import functools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from seams import Distillation, Example, relative_error, run_with_features
from slimrank.calibrate import choose_likelihood
from slimrank.forward import Batch
from slimrank.recover import Epoch, distill

teach = functools.partial(distill, progress=False)


class Net(nn.Module):
    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, width), nn.ReLU(inplace=True))
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Linear(width, 5)
        self.spare = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.norm(self.body(x)))}


def net(seed: int, width: int = 12) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = Net(width).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def noised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(9)
    model = copy.deepcopy(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator) * 0.3)
    return model


def data(n: int = 5) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(16, 6, generator=generator) for _ in range(n)]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"temperature": 0}, sr.OptionError, "temperature=0; give a positive number"),
        ({"temperature": "hot"}, sr.OptionError, "temperature='hot'; give a positive number"),
        ({"feature_weight": -1}, sr.OptionError, "feature_weight=-1; give a positive number"),
        ({"epochs": 0}, sr.OptionError, "epochs=0; give a whole number from 1"),
        ({"features": ["bdy"]}, sr.UnknownNameError, "the model has no module 'bdy'; did you mean 'body'"),
        ({"features": "haed"}, sr.UnknownNameError, "the model has no module 'haed'; did you mean 'head'"),
        (
            {"features": ["spare"]},
            sr.OptionError,
            "feature 'spare' takes or gives no tensor in the model; name",
        ),
        ({"likelihood": "poisson"}, sr.OptionError, "likelihood='poisson'; it is one of"),
        (
            {"outputs": "boxes"},
            sr.OutputError,
            "outputs='boxes': the model returns a dict, and 'boxes' is not in it",
        ),
        ({"inputs": 3}, sr.BatchesTypeError, "inputs=3 is no function"),
        (
            {"temperature": 2.0, "likelihood": "gaussian"},
            sr.OptionError,
            "temperature=2.0 is for categorical outputs, and there is none .* leave it out",
        ),
    ],
)
def test_an_option_that_does_not_fit_is_refused(
    options: Mapping[str, object], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        teach(net(0), net(1), data(), **options)  # type: ignore[arg-type]


def test_a_teacher_that_does_not_fit_is_refused() -> None:
    with pytest.raises(sr.OptionError, match="teacher is a str; give the original torch"):
        teach(net(0), "net", data())  # type: ignore[arg-type]
    with pytest.raises(
        sr.OutputError, match=r"the model gives {'logits': .*}, the teacher {'': \[16, 5\]}; pass"
    ):
        teach(net(0), nn.Linear(6, 5), data())
    with pytest.raises(
        sr.OptionError, match=r"feature 'body' is \[16, 12\] in the model and \[16, 8\] in the tea"
    ):
        teach(net(0), net(1, width=8), data(), features=["body"])
    with pytest.raises(sr.UnknownNameError, match="the teacher has no module 'head'; known are '0'"):
        teach(net(0), nn.Sequential(nn.Linear(6, 5)), data(), features=["head"])
    broken = net(1)
    with torch.no_grad():
        broken.head.bias[0] = float("nan")
    with pytest.raises(sr.NonFiniteError, match=r"batch \d: output logits holds nan or inf; pass outputs="):
        teach(net(0), broken, data())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 3.0},
        {"features": ["body", "body.0", "head"], "feature_weight": 0.5},
        {"likelihood": "gaussian"},
        {"likelihood": "bernoulli"},
        {"outputs": "logits"},
        {"outputs": lambda out: out["logits"].softmax(-1), "temperature": 2.0},
        {"norms": "reestimated"},
    ],
)
def test_the_model_comes_closer_and_the_teacher_stays(options: Mapping[str, object]) -> None:
    teacher = net(1).train()
    model = noised(teacher).eval()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    seen: list[Epoch] = []
    tuned = teach(model, teacher, data(), epochs=6, lr=0.01, on_epoch=seen.append, **options)  # type: ignore[arg-type]
    assert min(epoch.held_out_loss for epoch in seen) < seen[0].held_out_before
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(module.training for module in teacher.modules())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert not any(module._forward_hooks for m in (teacher, model, tuned) for module in m.modules())


def test_the_same_model_has_nothing_to_learn() -> None:
    seen: list[Epoch] = []
    teach(net(1), net(1), data(), on_epoch=seen.append)
    assert seen[0].held_out_before == pytest.approx(0, abs=1e-6)


def test_the_guard_looks_at_the_divergence_alone() -> None:
    teacher = net(1)
    before = []
    for options in ({}, {"temperature": 4.0}, {"features": ["body"], "feature_weight": 100.0}):
        teach(
            noised(teacher), teacher, data(), on_epoch=lambda e: before.append(e.held_out_before), **options
        )
    assert len(set(before)) == 1


def _distillation(teacher: nn.Module, temperature: float) -> Distillation:
    tensors = {"": torch.randn(64, 5, generator=torch.Generator().manual_seed(0)) * 5}
    return Distillation(
        teacher=teacher,
        outputs=None,
        likelihood=choose_likelihood(tensors, "categorical"),
        temperature=temperature,
        features=(),
        weight=1.0,
    )


def test_temperature_is_that_of_the_textbook(rng: torch.Generator) -> None:
    teacher, model = nn.Linear(6, 5), nn.Linear(6, 5)
    x = torch.randn(16, 6, generator=rng)
    example = Example(batch=Batch(args=(x,), kwargs={}), targets=None)
    for t in (1.0, 3.0):
        p, q = teacher(x).div(t).log_softmax(1), model(x).div(t).log_softmax(1)
        wanted = t**2 * nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
        torch.testing.assert_close(_distillation(teacher, t).loss(model, example), wanted)


def test_the_loss_is_per_position(rng: torch.Generator) -> None:
    teacher, model = nn.Linear(6, 5), nn.Linear(6, 5)
    x = torch.randn(4, 7, 6, generator=rng)
    distillation = dataclasses.replace(
        _distillation(teacher, 1.0),
        likelihood=choose_likelihood({"": torch.randn(8, 7, 5, generator=rng)}, "categorical"),
    )
    p, q = teacher(x).log_softmax(-1), model(x).log_softmax(-1)
    wanted = (p.exp() * (p - q)).sum(-1).mean().detach()
    example = Example(batch=Batch(args=(x,), kwargs={}), targets=None)
    torch.testing.assert_close(distillation.loss(model, example).detach(), wanted)
    with torch.no_grad():
        assert distillation.judge(model, example) == pytest.approx(7 * float(wanted), rel=1e-5)


def test_a_feature_is_what_its_module_returned() -> None:
    _, seen = run_with_features(net(0), Batch(args=(data()[0],), kwargs={}), ["body.0"])
    # What follows clips it in place.
    assert bool((seen["body.0", 0] < 0).any())


def test_features_count_relative_to_the_teachers_variance(rng: torch.Generator) -> None:
    wanted = torch.randn(8, 4, 3, generator=rng) * 7 + 2
    mean = wanted.mean().expand_as(wanted)
    torch.testing.assert_close(relative_error(mean, wanted, None), torch.tensor(1.0))
    mask = torch.zeros(8, 4, dtype=torch.bool)
    mask[:, :2] = True
    found = wanted.clone()
    found[:, 2:] = 1e6
    assert float(relative_error(found, wanted, mask)) == 0
