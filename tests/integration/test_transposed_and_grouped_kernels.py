# SPDX-License-Identifier: Apache-2.0
"""Transposed convolutions, and those in groups, behind channels that go: fitted anew, counted, saved."""

import copy
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank.capture import count_cost
from slimrank.forward import as_batch
from slimrank.records import Cost, Setting
from slimrank.surgery import slim

PRUNING = ("channel_pruning",)


class UNet(nn.Module):
    """One level down and up again; the map from below is concatenated with the one from above."""

    def __init__(self, kernel: int, padding: int, *, has_bias: bool, has_norm: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.Conv2d(8, 24, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(24, 12, kernel, 2, padding, bias=has_bias)
        self.norm = nn.BatchNorm2d(12) if has_norm else nn.Identity()
        self.mix = nn.Conv2d(20, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        top = self.stem(x).relu()
        below = self.norm(self.up(self.down(top).relu())).relu()
        return self.head(self.mix(torch.cat([below, top], 1)).relu())


def lifted() -> nn.Module:
    """Inputs far from zero: a channel has one bias for taps that would all want another."""
    model = UNet(2, 0, has_bias=True, has_norm=False)
    with torch.no_grad():
        model.down.bias += 3.0
    return model


class Decoder(nn.Module):
    """From one place to a map: most taps of a kernel reach every place from nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 24, 16)
        self.up = nn.ConvTranspose2d(24, 12, 4)
        self.head = nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.down(x).relu()).relu())


class Fixed(nn.Module):
    """What the groups make has to stay, since a norm runs over it."""

    def __init__(self, *, has_bias: bool = True) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 3, padding=1)
        self.b = nn.Conv2d(32, 16, 3, padding=1, groups=4, bias=has_bias)
        self.norm = nn.GroupNorm(1, 16)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.b(self.a(x).relu())))


class Bottleneck(nn.Module):
    """As in ResNeXt: whole groups may go, and places inside of all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 24, 3, padding=1)
        self.b = nn.Conv2d(24, 24, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.head = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.b(self.a(x).relu())).relu())


TRANSPOSED = {
    "far from zero": lifted,
    "one place": Decoder,
    "side by side": lambda: UNet(2, 0, has_bias=True, has_norm=False),
    "overlapping": lambda: UNet(4, 1, has_bias=True, has_norm=False),
    "no bias": lambda: UNet(4, 1, has_bias=False, has_norm=False),
    "norm": lambda: UNet(4, 1, has_bias=False, has_norm=True),
}
GROUPED = {
    "fixed": Fixed,
    "fixed, no bias": lambda: Fixed(has_bias=False),
    "bottleneck": Bottleneck,
}
NETS = {**TRANSPOSED, **GROUPED}
# Of the mean that a layer without a bias moves.
TAKEN_UP = ("norm", "bottleneck")


def images(seed: int) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn((16, 3, 16, 16), generator=rng).cumsum(-1) * 0.3 for _ in range(8)]


@cache
def net(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = (Split if name == "split" else NETS[name])().train()
    for batch in images(7):
        model(batch)
    return model.eval()


@cache
def studied(name: str) -> sr.Study:
    return sr.study(net(name), images(0), methods=PRUNING, draws=2, progress=False)


def error(model: nn.Module, name: str) -> float:
    with torch.no_grad():
        return sum(float((model(x) - net(name)(x)).square().mean()) for x in images(1))


def counted(model: nn.Module) -> Cost:
    return count_cost(model, as_batch(images(1)[0][:1]))


def reader_of(name: str) -> str:
    return "up" if name in TRANSPOSED else "b"


def group_read(name: str) -> str:
    """The group whose units the layer of interest loses as inputs."""
    groups = studied(name).structure.channels.groups.values()
    (found,) = [one.name for one in groups if one.consumers == (reader_of(name),)]
    return found


@pytest.mark.parametrize("name", NETS)
def test_what_it_reads_goes_and_it_is_fitted_anew(name: str, tmp_path: Path) -> None:
    study, reader, dim = studied(name), reader_of(name), 0 if name in TRANSPOSED else 1
    plan = sr.Plan.manual(study, {group_read(name): ("channel_pruning", 0.5)})
    result = study.apply(plan)
    layer, before = result.model.get_submodule(reader), net(name).get_submodule(reader)
    assert layer.weight.shape[dim] == before.weight.shape[dim] // 2
    assert result.after == plan.after
    assert counted(result.model) == plan.after
    assert (layer.bias is None) == (name in TAKEN_UP)

    cut = copy.deepcopy(net(name))
    slim(cut, study.structure.channels, plan.groups)
    assert error(result.model, name) < 0.8 * error(cut, name)
    damage = plan.damage
    assert damage is not None
    assert result.divergence == pytest.approx(damage, rel=0.4)

    result.save(tmp_path / "result")
    loaded = sr.load(tmp_path / "result", model=copy.deepcopy(net(name)))
    assert error(loaded, name) == error(result.model, name)
    assert sr.apply(net(name), plan, progress=False).after == plan.after


@pytest.mark.slow
@pytest.mark.parametrize("name", ["overlapping", "no bias", "bottleneck"])
def test_joint_plans_count_what_is_built(name: str) -> None:
    study = sr.study(net(name), images(0), draws=2, progress=False)
    for share in (0.7, 0.4):
        plan = study.plan(macs=share)
        result = study.apply(plan)
        assert result.plan == plan
        assert counted(result.model) == plan.after


def test_a_transposed_one_in_groups_is_left_as_it_is() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2, 2, groups=4)),
        *(nn.ReLU(), nn.Conv2d(8, 4, 1)),
    ).eval()
    study = sr.study(model, images(0), methods=PRUNING, draws=2, progress=False)
    assert "2" not in study.structure.channels.groups["0"].consumers


def test_hooks_may_change_it_first() -> None:
    """``on_layer`` sees it, and what it changes is fitted to."""
    seen: list[str] = []

    def on_layer(_model: nn.Module, name: str) -> None:
        seen.append(name)

    plan = sr.Plan.manual(studied("overlapping"), {"down": ("channel_pruning", 0.5)})
    result = sr.apply(net("overlapping"), plan, images(0), on_layer=on_layer, draws=2, progress=False)
    assert seen == ["up"]
    assert error(result.model, "overlapping") < 1.2 * error(
        studied("overlapping").apply(plan).model, "overlapping"
    )


def test_a_group_whose_zeros_are_not_numbers_says_so() -> None:
    """A transposed kernel with a norm per input channel divides 0 by 0 where nothing is left of one."""
    up = nn.utils.parametrizations.weight_norm(nn.ConvTranspose2d(8, 6, 2, 2))
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), up, nn.Conv2d(6, 4, 1)).eval()
    study = sr.study(model, images(0), draws=1, progress=False)
    reason = study.structure.channels.groups["0"].reason
    assert reason is not None
    assert reason.startswith("slimmed and masked model cannot be compared: ")
    assert "holds nan or inf once its channels are zeros" in reason


def test_whole_groups_and_places_inside_go_together() -> None:
    study = studied("bottleneck")
    groups = {one.name: one for one in study.structure.channels.groups.values() if one.reason is None}
    inner = group_read("bottleneck")
    (outer,) = [name for name, one in groups.items() if name != inner and one.units == 4]
    plan = sr.Plan.manual(study, {inner: ("channel_pruning", 0.5), outer: ("channel_pruning", 0.5)})
    result = study.apply(plan)
    assert result.model.b.groups == 2
    assert result.model.b.weight.shape == (12, 3, 3, 3)
    assert result.after == plan.after
    cut = copy.deepcopy(net("bottleneck"))
    slim(cut, study.structure.channels, plan.groups)
    assert error(result.model, "bottleneck") < 0.8 * error(cut, "bottleneck")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Twice(nn.Module):
    """Blocks that may go, and behind them a kernel in groups that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.Sequential(Residual(), Residual(), Residual())
        self.b = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Conv2d(16, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x).relu())
        return self.head(self.b(self.b(x).relu()).relu())


@pytest.mark.slow
@pytest.mark.parametrize("sequential", [True, False])
def test_whole_groups_go_behind_a_block_that_goes(sequential: bool) -> None:
    torch.manual_seed(0)
    model = Twice().eval()
    study = sr.study(model, images(0), methods=PRUNING, draws=1, progress=False)
    plan = sr.Plan.manual(study, {"stem": ("channel_pruning", 0.5), "blocks.0": "drop"})
    result = study.apply(plan, sequential=sequential)
    assert result.model.b.groups == 2
    assert result.after == plan.after
    assert counted(result.model) == plan.after


class Split(nn.Module):
    """Grouped kernels of ResNeXt's kind, strided and not, between pointwise ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 32, 1)
        self.b = nn.Conv2d(32, 32, 3, padding=1, groups=4, bias=False)
        self.norm = nn.BatchNorm2d(32)
        self.c = nn.Conv2d(32, 48, 3, stride=2, padding=1, groups=2)
        self.deep = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.head = nn.Conv2d(48, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.b(self.a(x).relu())).relu()
        return self.head(self.deep(self.c(x).relu()).relu())


SVD = ("weight_svd", "spatial_svd")


@cache
def studied_with_pairs() -> sr.Study:
    return sr.study(net("split"), images(0), draws=1, progress=False)


def test_grouped_kernels_are_offered_and_depthwise_ones_are_not() -> None:
    study = studied_with_pairs()
    text = study.summary()
    lines = {line.split()[0]: line for line in text.splitlines() if line[:1] in "bcd" and "conv2d" in line}
    assert "weight_svd, spatial_svd" in lines["b"]
    assert "weight_svd, spatial_svd" in lines["c"]
    deep = study.structure.layers["deep"]
    assert "weight_svd" not in deep.methods
    assert {curve.form for curve in study.curves if curve.layer == "b"} == {
        "kxk_1x1",
        "1x1_kxk",
        "v_h",
        "h_v",
    }
    assert not [curve for curve in study.curves if curve.layer == "deep"]
    # One rank per group: 8 outputs each.
    assert max(int(c.ranks[-1]) for c in study.curves if c.layer == "b" and c.form == "kxk_1x1") < 8


@pytest.mark.parametrize("sequential", [True, False])
def test_grouped_kernels_are_split_fitted_saved_and_replayed(sequential: bool, tmp_path: Path) -> None:
    study = studied_with_pairs()
    plan = sr.Plan.manual(study, {"b": ("weight_svd", 0.6), "c": ("spatial_svd", 0.5)})
    result = study.apply(plan, sequential=sequential)
    first, second = result.model.b
    rank = plan.settings["b"].rank
    assert (first.groups, second.groups) == (4, 4)
    assert (first.out_channels, second.in_channels) == (4 * rank, 4 * rank)
    assert [factor.groups for factor in result.model.c] == [2, 2]
    assert result.after == plan.after
    assert counted(result.model) == plan.after
    assert plan.damage is not None
    assert result.divergence == pytest.approx(plan.damage, rel=0.5)

    result.save(tmp_path / "result")
    loaded = sr.load(tmp_path / "result", model=copy.deepcopy(net("split")))
    assert error(loaded, "split") == error(result.model, "split")
    plan.save(tmp_path / "plan.json")
    again = sr.Plan.load(tmp_path / "plan.json")
    assert again.settings == plan.settings
    assert sr.apply(net("split"), again, progress=False).after == plan.after


@pytest.mark.slow
def test_pairs_and_widths_of_grouped_kernels_are_planned_together() -> None:
    study = studied_with_pairs()
    built = 0
    for budgets in ({"macs": 0.6}, {"params": 0.5}, {"macs": 0.4, "params": 0.6}):
        plan = study.plan(**budgets)
        result = study.apply(plan)
        assert result.after == plan.after
        assert counted(result.model) == plan.after
        built += bool({"b", "c"} & set(plan.settings))
    assert built
    names = {one.name: one for one in study.structure.channels.groups.values() if one.reason is None}
    inner = next(name for name, one in names.items() if one.consumers == ("b",))
    # The groups of "c" hold two of "b" each.
    outer = next(name for name, one in names.items() if "b" in one.producers and one.consumers == ("head",))
    three = Setting(method="weight_svd", form="kxk_1x1", rank=3)
    manual = sr.Plan.manual(
        study,
        {
            inner: ("channel_pruning", 0.5),
            outer: ("channel_pruning", 0.5),
            "b": three,
        },
    )
    result = study.apply(manual)
    assert [factor.groups for factor in result.model.b] == [2, 2]
    assert result.model.b[0].weight.shape == (2 * 3, 4, 3, 3)
    assert result.after == manual.after
    assert counted(result.model) == manual.after


def test_a_grouped_pair_may_be_split_again() -> None:
    study = studied_with_pairs()
    result = study.apply(sr.Plan.manual(study, {"c": ("weight_svd", 0.8)}))
    more = sr.study(result, images(0), methods=SVD, draws=1, progress=False)
    assert more.structure.layers["c.0"].groups == 2
    again = more.apply(sr.Plan.manual(more, {"c.0": ("spatial_svd", 0.6)}))
    assert counted(again.model) == again.plan.after


def test_weights_alone_split_grouped_kernels_too() -> None:
    study = sr.study(net("split"), images(0)[:1], data_free=True, methods=SVD, progress=False)
    plan = sr.Plan.manual(study, {"b": ("weight_svd", 0.6)})
    result = study.apply(plan)
    assert counted(result.model) == plan.after
