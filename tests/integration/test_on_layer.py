# SPDX-License-Identifier: Apache-2.0
"""The hook after each compressed layer: order, training, and changes to layers still to come."""

from types import ModuleType

import pytest
import torch
from torch import nn

import seams
import slimrank as sr

NAMES = ("stem", "conv", "last", "fc")


@pytest.fixture
def study(nets: ModuleType) -> sr.Study:
    return sr.study(nets.cnn(), nets.noise(1, 8, 8, n=4), progress=False)


@pytest.fixture
def plan(study: sr.Study) -> sr.Plan:
    return sr.Plan.manual(study, {name: ("weight_svd", 0.7) for name in NAMES})


def test_called_in_order_on_the_growing_model(study: sr.Study, plan: sr.Plan) -> None:
    seen: list[tuple[str, list[str]]] = []
    models: list[nn.Module] = []

    def note(model: nn.Module, name: str) -> None:
        pairs = [child for child, part in model.named_children() if isinstance(part, nn.Sequential)]
        seen.append((name, pairs))
        models.append(model)

    result = study.apply(plan, on_layer=note)
    assert [name for name, _ in seen] == list(NAMES)
    assert all(sorted(pairs) == sorted(NAMES[: index + 1]) for index, (_, pairs) in enumerate(seen))
    assert all(model is result.model for model in models)
    assert result.after == plan.after


@pytest.mark.parametrize("quiet", [True, False])
def test_layers_can_be_trained_when_it_is_called(
    study: sr.Study, plan: sr.Plan, nets: ModuleType, quiet: bool
) -> None:
    losses: list[float] = []

    def train(model: nn.Module, name: str) -> None:
        assert torch.is_grad_enabled()
        part = model.get_submodule(name)
        assert all(p.requires_grad and p.is_leaf for p in part.parameters())
        model.train()
        optimizer = torch.optim.SGD(part.parameters(), lr=1e-3)
        loss = model(nets.noise(1, 8, 8)[0]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))

    with torch.set_grad_enabled(not quiet):
        result = study.apply(plan, on_layer=train)
    assert len(losses) == 4
    assert result.after == plan.after
    # The caller's model was in eval mode.
    assert not any(module.training for module in result.model.modules())


def test_what_it_does_to_finished_layers_stays(study: sr.Study, plan: sr.Plan) -> None:
    def mark(model: nn.Module, name: str) -> None:
        with torch.no_grad():
            model.get_submodule(name)[1].bias.fill_(0.25)

    result = study.apply(plan, on_layer=mark)
    assert all(torch.all(result.model.get_submodule(name)[1].bias == 0.25) for name in NAMES)


@pytest.mark.parametrize("what", ["weight", "bias"])
def test_changes_to_a_layer_still_to_come_are_kept(what: str, study: sr.Study, nets: ModuleType) -> None:
    plan = sr.Plan.manual(study, {"stem": ("weight_svd", 0.8), "fc": ("weight_svd", {"rank": 7})})
    plain = study.apply(plan).model.fc

    def change(model: nn.Module, name: str) -> None:
        if name == "stem":
            with torch.no_grad():
                tensor = getattr(model.fc, what)
                tensor.copy_(-2 * tensor if what == "weight" else tensor + 5)

    changed = study.apply(plan, on_layer=change).model.fc
    original = nets.cnn().fc
    x = torch.rand(64, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = plain(x), changed(x)
        if what == "bias":
            torch.testing.assert_close(after, before + 5, rtol=0.2, atol=0.5)
        else:
            wanted = x @ (-2 * original.weight.T) + original.bias
            assert (after - wanted).norm() < 0.5 * (before - wanted).norm()
            product = changed[1].weight @ changed[0].weight
            cosine = torch.cosine_similarity(product.flatten(), (-2 * original.weight).flatten(), dim=0)
            assert cosine > 0.8


def test_a_pending_layer_may_be_exchanged(study: sr.Study) -> None:
    plan = sr.Plan.manual(study, {"stem": ("weight_svd", 0.8), "fc": ("weight_svd", {"rank": 7})})

    def exchange(model: nn.Module, name: str) -> None:
        if name == "stem":
            fresh = nn.Linear(24, 10)
            with torch.no_grad():
                fresh.weight.copy_(-model.fc.weight)
                fresh.bias.copy_(model.fc.bias)
            model.fc = fresh

    plain, exchanged = study.apply(plan).model.fc, study.apply(plan, on_layer=exchange).model.fc
    products = [fc[1].weight @ fc[0].weight for fc in (plain, exchanged)]
    assert torch.cosine_similarity(products[0].flatten(), products[1].flatten(), dim=0) < -0.5


def test_works_on_a_plan_alone(study: sr.Study, plan: sr.Plan, nets: ModuleType) -> None:
    seen: list[str] = []
    sr.apply(nets.cnn(), plan, on_layer=lambda _m, name: seen.append(name), progress=False)
    assert seen == list(NAMES)
    seen.clear()
    sr.apply(
        nets.cnn(), plan, nets.noise(1, 8, 8), on_layer=lambda _m, name: seen.append(name), progress=False
    )
    assert seen == list(NAMES)


@pytest.mark.parametrize(
    ("hook", "words"),
    [
        (lambda: None, r"on_layer cannot be called as fn\(model, layer_name\)"),
        (lambda model: None, r"on_layer cannot be called as fn\(model, layer_name\)"),
        (lambda model, name, *, lr: None, r"on_layer cannot be called as fn\(model, layer_name\)"),
        (3, r"on_layer is a int; give a function fn\(model, layer_name\)"),
    ],
)
def test_a_wrong_signature_is_refused_before_anything_runs(
    hook: object,
    words: str,
    study: sr.Study,
    plan: sr.Plan,
    nets: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seams.forbid_copies(monkeypatch)
    with pytest.raises(sr.OptionError, match=words) as caught:
        study.apply(plan, on_layer=hook)
    assert isinstance(caught.value, ValueError)
    with pytest.raises(sr.OptionError, match=words):
        sr.compress(nets.cnn(), nets.noise(1, 8, 8), macs=0.5, on_layer=hook, progress=False)
    with pytest.raises(sr.OptionError, match=words):
        sr.apply(nets.cnn(), plan, on_layer=hook, progress=False)
