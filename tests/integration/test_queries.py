# SPDX-License-Identifier: Apache-2.0
"""Attention that takes its scale from the width of a head, end to end.

What goes is zero in the original, so that a model without it must be the original again: channels that are
dead behind a ReLU, and places of every head at which neither queries nor keys nor values hold anything.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
import zoo_nets
from torch import Tensor, nn
from torch.nn import functional

import slimrank as sr

_WIDTH, _HEADS = 6, 4
_KEPT = {"enter": tuple(range(4, 16)), "attention.qkv#2": (0, 1, 4)}
_DEAD = (2, 3, 5)
_RANK = 5


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = _HEADS
        self.qkv = nn.Linear(16, 3 * _HEADS * _WIDTH)
        self.out = nn.Linear(_HEADS * _WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return self.out(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class _Net(nn.Module):
    def __init__(self, *, times: int = 1) -> None:
        super().__init__()
        self.enter, self.attention, self.fc = nn.Linear(10, 16), _Attention(), nn.Linear(12, 5)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.attention(self.enter(x * (1 + turn)).relu()) for turn in range(self.times)]
        return self.fc(sum(parts).mean(1))


def _build(times: int = 1) -> nn.Module:
    model = zoo_nets.settle(_Net(times=times)).eval()
    with torch.no_grad():
        model.enter.weight[:4], model.enter.bias[:4] = 0, -1
        for layer in (model.attention.qkv, model.attention.out):
            # So that factors lose nothing.
            u, s, vh = torch.linalg.svd(layer.weight, full_matrices=False)
            layer.weight.copy_(u[:, :_RANK] * s[:_RANK] @ vh[:_RANK])
        rows = model.attention.qkv.weight.view(3, _HEADS, _WIDTH, 16)
        rows[:, :, _DEAD] = 0
        model.attention.qkv.bias.view(3, _HEADS, _WIDTH)[:, :, _DEAD] = 0
        # Far from even, so that another scale shows.
        rows[:2] *= 3
    return model


def _batches(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(16, 7, 10, generator=generator) for _ in range(4)]


@cache
def _studied(times: int = 1) -> sr.Study:
    return sr.study(_build(times), _batches(), draws=2, progress=False)


def _plan(times: int = 1, **wishes: object) -> sr.Plan:
    kept = {name: ("channel_pruning", {"channels_kept": units}) for name, units in _KEPT.items()}
    return sr.Plan.manual(_studied(times), {**kept, **wishes})


_FACTORS = {
    "attention.qkv": ("weight_svd", {"rank": _RANK}),
    "attention.out": ("weight_svd", {"rank": _RANK}),
}


def _outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in _batches(1)])


def _check(result: sr.Result, times: int = 1) -> None:
    layer = result.model.attention.qkv
    assert (layer[1] if isinstance(layer, nn.Sequential) else layer).out_features == 3 * _HEADS * 3
    torch.testing.assert_close(_outputs(result.model), _outputs(_build(times)), rtol=1e-3, atol=2e-3)


def test_the_width_of_a_head_is_a_group() -> None:
    channels = _studied().structure.channels
    assert channels.groups["attention.qkv#2"].reason is None
    queries = {
        tensor.name: axis.queries
        for tensor in channels.tensors.values()
        for axis in tensor.axes
        if axis.queries
    }
    assert queries == dict.fromkeys(("attention.qkv.weight", "attention.qkv.bias"), tuple(range(24)))


@pytest.mark.parametrize("wishes", [{}, _FACTORS], ids=["fitted anew", "factors"])
@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("sequential", [True, False])
def test_scores_are_what_they_were(wishes: Mapping[str, object], times: int, sequential: bool) -> None:
    _check(_studied(times).apply(_plan(times, **wishes), sequential=sequential), times)


@pytest.mark.parametrize("wishes", [{}, _FACTORS], ids=["slimmed", "factors"])
def test_scores_are_what_they_were_without_data(wishes: Mapping[str, object]) -> None:
    _check(sr.apply(_build(), _plan(**wishes), progress=False))


@pytest.mark.parametrize("wishes", [{}, _FACTORS], ids=["fitted anew", "factors"])
def test_scores_are_what_they_were_layer_by_layer(wishes: Mapping[str, object]) -> None:
    def nudge(model: nn.Module, name: str) -> None:
        # The layer after it is fitted to what it finds.
        if name == "attention.out":
            model.fc.bias.data += 0.0

    _check(_studied().apply(_plan(**wishes), on_layer=nudge))


def test_the_width_alone_is_measured_as_no_loss() -> None:
    group = next(one for one in _studied().group_curves if one.group == "attention.qkv#2")
    damages = dict(zip(group.kept.tolist(), group.damage.tolist(), strict=True))
    assert set(group.order[:3]) == set(_DEAD)
    assert damages[3] == pytest.approx(0, abs=1e-4)
    assert damages[2] > 1e-3


class _Gated(nn.Module):
    """One head, whose queries are gated by the channels that they are made from."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.q = nn.Linear(10, _WIDTH), nn.Linear(_WIDTH, _WIDTH)
        self.k, self.v, self.fc = nn.Linear(10, _WIDTH), nn.Linear(10, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.enter(x).relu()
        return self.fc(functional.scaled_dot_product_attention(self.q(y) * y, self.k(x), self.v(x)).mean(1))


def test_a_layer_that_reads_the_width_as_well_is_fitted_scaled() -> None:
    model = zoo_nets.settle(_Gated()).eval()
    with torch.no_grad():
        for layer in (model.q, model.k):
            layer.weight *= 3
            layer.weight[list(_DEAD)], layer.bias[list(_DEAD)] = 0, 0
        model.q.weight[:, _DEAD] = 0
    study = sr.study(model, _batches(), draws=2, progress=False)
    group = study.structure.channels.groups["enter"]
    assert (group.producers, group.consumers) == (("enter", "q", "k"), ("q",))
    curve = next(one for one in study.group_curves if one.group == "enter")
    damages = dict(zip(curve.kept.tolist(), curve.damage.tolist(), strict=True))
    assert damages[3] == pytest.approx(0, abs=1e-4)
    result = study.apply(sr.Plan.manual(study, {"enter": ("channel_pruning", {"channels_kept": (0, 1, 4)})}))
    torch.testing.assert_close(_outputs(result.model), _outputs(model), rtol=1e-3, atol=2e-3)


def test_files_keep_them(tmp_path: Path) -> None:
    plan = _plan(**_FACTORS)
    plan.save(tmp_path / "plan.json")
    assert sr.Plan.load(tmp_path / "plan.json") == plan
    result = _studied().apply(plan)
    result.save(tmp_path / "result")
    assert torch.equal(_outputs(sr.load(tmp_path / "result", model=_build())), _outputs(result.model))


def test_scores_of_a_table_are_measured_with_them() -> None:
    expected = _outputs(_build())

    def score(model: nn.Module) -> float:
        return -float((_outputs(model) - expected).abs().max())

    table = sr.measure_scores(
        _studied(), score, methods=("channel_pruning",), candidates=(0.5,), progress=False
    )
    (entry,) = table.groups["attention.qkv#2"]
    assert entry.rank == 3
    assert entry.score > -2e-3
