# SPDX-License-Identifier: Apache-2.0
"""Channels that go, end to end: planned, built, counted, saved, replayed, resumed, told."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pruning_nets
import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr
from slimrank.records import ChannelMap, ChannelOrder
from slimrank.surgery import drop_blocks, slim

PRUNING = ("channel_pruning",)
Snapshot = Callable[[nn.Module], object]


@cache
def studied(name: str) -> sr.Study:
    return sr.study(pruning_nets.build(name), pruning_nets.batches(name), draws=2, progress=False)


@cache
def applied(name: str, macs: float) -> sr.Result:
    """Of a plan with all methods; tests leave the model as it is."""
    return studied(name).apply(studied(name).plan(macs=macs))


def outputs(model: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(batch) for batch in pruning_nets.batches(name, seed=1)])


def same_state(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def bits(study: sr.Study) -> object:
    """Everything that was measured."""
    ranks = ("ranks", "macs", "params", "bytes", "error", "damage")
    return (
        [(c.layer, c.form, [np.asarray(getattr(c, name)).tobytes() for name in ranks]) for c in study.curves],
        [(c.group, c.order, c.kept.tobytes(), c.damage.tobytes()) for c in study.group_curves],
        study.block_damages,
    )


def touched(channels: ChannelMap, plan: sr.Plan) -> set[str]:
    """Modules that hold something of a slimmed group."""
    return {
        tensor.name.rpartition(".")[0]
        for tensor in channels.tensors.values()
        if any(axis.group in plan.groups for axis in tensor.axes)
    }


def check(result: sr.Result, plan: sr.Plan, name: str, model: nn.Module) -> None:
    """Counted as planned, within the budgets, ordinary, and the same where nothing was to be done."""
    assert result.after == plan.after
    for metric, ratio in plan.budgets.items():
        assert result.keep_ratio(metric) <= ratio
    parameters = list(result.model.parameters())
    assert result.after.params == sum(p.numel() for p in parameters)
    assert result.after.bytes == sum(p.numel() * p.element_size() for p in parameters)
    kinds = {type(module).__module__ for module in result.model.modules()}
    assert all(kind == "pruning_nets" or kind.startswith("torch.nn.modules") for kind in kinds)
    assert outputs(result.model, name).isfinite().all()
    before, after = model.state_dict(), result.model.state_dict()
    changed = {*touched(plan.steps[-1].structure.channels, plan), *plan.settings}
    # What a layer without bias loses of its mean may move into a norm that no group touches.
    changed |= {plan.steps[-1].structure.channels.norms.get(layer, layer) for layer in changed}
    for key, tensor in before.items():
        layer = key.rpartition(".")[0]
        if layer not in changed and not f"{layer}.".startswith(tuple(f"{block}." for block in plan.dropped)):
            assert torch.equal(after[key], tensor), key


# --- every network ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "wish",
    [
        {"macs": 0.6},
        {"macs": 0.6, "methods": PRUNING},
        {"params": 0.55},
        {"macs": 0.8, "bytes": 0.7, "methods": PRUNING},
        {"macs": 0.9, "params": 0.9, "select": "uniform", "methods": PRUNING},
    ],
    ids=["macs", "channels only", "params", "channels only, two budgets", "channels only, uniform"],
)
@pytest.mark.parametrize("name", pruning_nets.NAMES)
def test_costs_are_as_planned(name: str, wish: Mapping[str, object], snapshot: Snapshot) -> None:
    study, model = studied(name), pruning_nets.build(name)
    before, chance = snapshot(model), torch.get_rng_state()
    plan = study.plan(**wish)
    assert plan.groups
    if wish.get("methods") == PRUNING:
        assert not plan.settings
    result = study.apply(plan)
    check(result, plan, name, model)
    assert result.plan == plan
    sr.apply(model, plan, progress=False)
    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), chance)


@pytest.mark.parametrize("name", pruning_nets.NAMES)
def test_copies_files_and_replays_are_exact(name: str, tmp_path: Path) -> None:
    result, batches = applied(name, 0.6), pruning_nets.batches(name)
    plan = result.plan
    expected = outputs(result.model, name)
    assert torch.equal(outputs(copy.deepcopy(result.model), name), expected)

    result.save(tmp_path / "result")
    assert not list((tmp_path / "result").rglob("*.p*kl"))
    loaded = sr.load(tmp_path / "result", model=pruning_nets.build(name, seed=5))
    assert same_state(loaded, result.model)
    assert torch.equal(outputs(loaded, name), expected)

    plan.save(tmp_path / "plan.json")
    again = sr.Plan.load(tmp_path / "plan.json")
    assert again == plan
    replayed = sr.apply(pruning_nets.build(name), again, batches, draws=2, progress=False)
    assert same_state(replayed.model, result.model)
    assert replayed.divergence == result.divergence
    assert replayed.after == plan.after
    bare = sr.apply(pruning_nets.build(name), again, progress=False)
    assert bare.after == plan.after
    assert outputs(bare.model, name).shape == expected.shape


@pytest.mark.parametrize("name", ["residual", "transformer"])
def test_a_study_is_saved_and_loaded(name: str, tmp_path: Path) -> None:
    study = studied(name)
    study.save(tmp_path)
    bare = sr.Study.load(tmp_path)
    assert bits(bare) == bits(study)
    assert bare.groups() == study.groups()
    assert bare.structure.channels == study.structure.channels
    plan = bare.plan(macs=0.6)
    assert plan == applied(name, 0.6).plan
    loaded = sr.Study.load(tmp_path, model=pruning_nets.build(name), progress=False)
    assert same_state(loaded.apply(plan).model, applied(name, 0.6).model)


# --- resumed ---


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "after"),
    [("groups", 0), ("groups", 2), ("blocks", 0), ("blocks", 1), ("blocks", 2)],
)
def test_an_interrupted_study_goes_on(
    where: str, after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study() -> sr.Study:
        model, batches = pruning_nets.build("residual"), pruning_nets.batches("residual")
        return sr.study(model, batches, draws=2, run_dir=tmp_path, progress=False)

    with monkeypatch.context() as patch:
        interrupt = seams.interrupt_after_groups if where == "groups" else seams.interrupt_after_drops
        interrupt(patch, after)
        with pytest.raises(KeyboardInterrupt):
            study()
    whole, expected = studied("residual"), applied("residual", 0.5)
    measured = seams.watch_group_curves(monkeypatch)
    drops = seams.watch_drops(monkeypatch)
    resumed = study()
    groups = ["stem", "layer1.conv1", "layer2.conv1"]
    assert measured == (groups[after:] if where == "groups" else [])
    steps = [("layer1",), ("layer2",), ("layer1", "layer2")]
    assert [drop.blocks for drop in drops] == steps[after if where == "blocks" else 0 :]
    assert bits(resumed) == bits(whole)
    plan = resumed.plan(macs=0.5)
    assert plan == expected.plan
    assert same_state(resumed.apply(plan).model, expected.model)


def test_how_many_samples_serve_does_not_depend_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def study(run_dir: Path | None) -> sr.Study:
        model, batches = pruning_nets.build("mlp"), pruning_nets.batches("mlp", n=8, size=16)
        return sr.study(model, batches, methods=PRUNING, draws=1, run_dir=run_dir, progress=False)

    # So few MACs that the held-out samples, 25, are shared out among the measurements.
    seams.few_anchor_macs(monkeypatch, 2e5)
    whole = study(None)
    with monkeypatch.context() as patch:
        seams.interrupt_after_groups(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            study(tmp_path)
    assert bits(study(tmp_path)) == bits(whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("group-0001", "curve for group 'layer1.conv1'"),
        ("curves-0002", "curves for layer 'layer1.conv2'"),
        ("blocks", "damages of blocks"),
    ],
)
def test_an_unfinished_study_is_not_loaded(file: str, told: str, tmp_path: Path) -> None:
    studied("residual").save(tmp_path)
    (tmp_path / f"{file}.safetensors").unlink()
    with pytest.raises(sr.StudyError, match=rf"holds no {told}: the study was not finished; run"):
        sr.Study.load(tmp_path)


@pytest.mark.parametrize("order", ["magnitude", "random"])
def test_other_orders_are_measured_alike(order: ChannelOrder) -> None:
    model, batches = pruning_nets.build("plain"), pruning_nets.batches("plain")

    def study(seed: int) -> sr.Study:
        return sr.study(
            model, batches, methods=PRUNING, channel_order=order, draws=1, seed=seed, progress=False
        )

    first, again, other = study(0), study(0), study(1)
    orders = [[curve.order for curve in one.group_curves] for one in (first, again, other)]
    assert orders[0] == orders[1]
    assert (orders[0] == orders[2]) is (order == "magnitude")
    assert orders[0] != [curve.order for curve in studied("plain").group_curves]
    plan = first.plan(macs=0.6)
    check(first.apply(plan), plan, "plain", model)


@pytest.mark.parametrize("name", ["plain", "transformer"])
def test_an_interrupted_apply_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = studied(name)
    study.save(tmp_path)
    whole = study.apply(study.plan(macs=0.4, multiple_of=1))
    plan = whole.plan
    assert len({layer.name for layer in whole.layers if layer.fit}) > 1
    loaded = sr.Study.load(tmp_path, model=pruning_nets.build(name), run_dir=tmp_path, progress=False)
    with monkeypatch.context() as patch:
        seams.interrupt_after_fits(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            loaded.apply(plan)
    fitted = seams.watch_fits(monkeypatch)
    resumed = loaded.apply(plan)
    done = {layer.name for layer in whole.layers if layer.fit}
    assert len(fitted) == len(done) - 1
    assert same_state(resumed.model, whole.model)
    assert resumed.divergence == whole.divergence
    # Other channels of the same groups are another plan.
    group, kept = next(iter(plan.groups.items()))
    units = study.structure.channels.groups[group].units
    others = sorted((unit + 1) % units for unit in kept)
    assert others != list(kept)
    fitted.clear()
    loaded.apply(plan.replace(group, ("channel_pruning", {"channels_kept": others})))
    assert len(fitted) >= len(done)


# --- the hook ---


def test_the_hook_sees_every_layer_that_is_fitted() -> None:
    study = studied("plain")
    plan = sr.Plan.manual(
        study,
        {
            "stem": ("channel_pruning", 0.5),
            "deep": ("channel_pruning", 0.5),
            "last": ("weight_svd", {"rank": 4, "form": "kxk_1x1"}),
        },
    )
    seen: list[tuple[str, tuple[int, ...]]] = []
    models: list[nn.Module] = []

    def note(model: nn.Module, name: str) -> None:
        seen.append((name, tuple(next(model.get_submodule(name).parameters()).shape)))
        models.append(model)
        assert torch.is_grad_enabled()
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())

    result = study.apply(plan, on_layer=note)
    # The stem only lost channels: nothing was fitted there.
    assert seen == [("deep", (12, 8, 3, 3)), ("last", (4, 12, 3, 3))]
    assert all(model is result.model for model in models)
    assert result.after == plan.after
    fits = {layer.name: layer.fit for layer in result.layers}
    assert fits["stem"] is None
    assert fits["fc"] is None
    assert fits["deep"] is not None


def test_what_the_hook_does_is_kept() -> None:
    study = studied("mlp")
    plan = sr.Plan.manual(study, {"0": ("channel_pruning", 0.75), "2": ("channel_pruning", 0.75)})
    plain = study.apply(plan).model
    fitted: list[Tensor] = []

    def change(model: nn.Module, name: str) -> None:
        with torch.no_grad():
            if name == "2":
                model[2].bias.fill_(0.25)
                model[4].weight.mul_(-2)
            else:
                fitted.append(model[4].bias.clone())
                model[4].bias.add_(3)

    changed = study.apply(plan, on_layer=change).model
    assert torch.all(changed[2].bias == 0.25)
    cosine = torch.cosine_similarity(changed[4].weight.flatten(), plain[4].weight.flatten(), dim=0)
    assert cosine < -0.9
    assert torch.equal(changed[4].bias, fitted[0] + 3)


def test_the_hook_may_not_put_something_else_there() -> None:
    study = studied("mlp")
    plan = sr.Plan.manual(study, {"0": ("channel_pruning", 0.75), "2": ("channel_pruning", 0.75)})

    def widen(model: nn.Module, name: str) -> None:
        if name == "2":
            model[4] = nn.Linear(40, 10)

    with pytest.raises(sr.OptionError, match=r"layer '4': on_layer put a Linear there .* weight \[10, 30\]"):
        study.apply(plan, on_layer=widen)


# --- options ---


@pytest.mark.parametrize("name", pruning_nets.NAMES)
def test_without_data(name: str) -> None:
    model, batches = pruning_nets.build(name), pruning_nets.batches(name)
    study = sr.study(model, batches, data_free=True, progress=False)
    assert not study.block_damages
    plan = study.plan(macs=0.7, methods=("channel_pruning",))
    assert plan.groups
    assert not plan.has_bias
    result = study.apply(plan)
    check(result, plan, name, model)
    assert {layer.fit for layer in result.layers if layer.fit} <= {"weights"}
    assert sr.apply(model, plan, batches, progress=False).after == plan.after


def test_without_data_a_plan_chooses_among_factors() -> None:
    study = sr.study(
        pruning_nets.build("plain"), pruning_nets.batches("plain"), data_free=True, progress=False
    )
    plan = study.plan(macs=0.7)
    assert plan.settings
    assert not plan.groups


@pytest.mark.slow
def test_layers_behind_a_dropped_block_make_up_for_it() -> None:
    model, batches = pruning_nets.build("residual"), pruning_nets.batches("residual")
    study = sr.study(model, batches, draws=1, progress=False)
    block = min(study.block_damages, key=lambda one: one.damage).block
    plan = sr.Plan.manual(study, {block: "drop"})
    result = study.apply(plan)
    assert result.after == plan.after
    told = {layer.name: layer.slimmed for layer in result.layers}
    assert "fitted anew behind a dropped block" in told.values()
    # As many samples as there are serve both, so the study foretells what comes out.
    assert result.divergence == pytest.approx(plan.damage)
    bare = copy.deepcopy(model)
    drop_blocks(bare, [block], study.structure.channels.blocks)
    unfitted = seams.divergence_of(study, bare)
    assert result.divergence < unfitted / 4


def test_of_few_samples_a_block_is_foretold_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seams.few_block_macs(monkeypatch, 1.0)
    model, batches = pruning_nets.build("residual"), pruning_nets.batches("residual", n=40)
    with monkeypatch.context() as patch:
        drops = seams.watch_drops(patch)
        study = sr.study(model, batches, methods=PRUNING, draws=1, progress=False)
    assert {(drop.n_fit, drop.n_held_out) for drop in drops} == {(16, 4)}
    in_turn = sorted(study.block_damages, key=lambda one: one.damage)
    for count in range(1, len(in_turn) + 1):
        plan = sr.Plan.manual(study, {one.block: "drop" for one in in_turn[:count]})
        reached = study.apply(plan).divergence
        assert plan.damage is not None
        assert reached is not None
        assert reached / 2 < plan.damage < 2 * reached


@pytest.mark.slow
def test_a_block_that_others_make_up_for_goes() -> None:
    model, batches = pruning_nets.build("residual"), pruning_nets.batches("residual")
    with torch.no_grad():
        # It adds nearly the same everywhere: much to lose, and little once the layer behind it knows.
        model.layer2.norm2.weight.mul_(0.1)
        model.layer2.norm2.bias.fill_(1.0)
    study = sr.study(model, batches, draws=2, progress=False)
    plan = study.plan(macs=0.5)
    assert plan.dropped == ("layer2",)
    result = study.apply(plan)
    assert result.after == plan.after
    staying = study.apply(study.plan(macs=0.5, skip=("layer2",)))
    assert result.divergence is not None
    assert staying.divergence is not None
    assert result.divergence < staying.divergence


@pytest.mark.slow
def test_where_the_first_plan_drops_a_block_one_that_keeps_all_competes() -> None:
    study = studied("residual")
    free = tuple(replace(one, damage=0.0) for one in study.block_damages)
    study = replace(study, block_damages=free)
    rivals = seams.Rivals(
        study,
        lambda on, select, only: on.plan(macs=0.5, select=select, methods=only),
        None,
        max_damage=1.1,
        builds=seams.Builds(study, "compress"),
        competes=True,
    )
    plan = study.plan(macs=0.5)
    assert plan.dropped
    rivals.build("optimal", plan)
    rivals.build_others()
    result = rivals.best()
    told = [note.text for note in result.notes if note.where == "compete"]
    assert any(text.startswith("optimal, all blocks kept plan:") for text in told)


class Counted(list[Tensor]):
    """Batches that count how often they are read."""

    passes = 0

    def __iter__(self) -> Iterator[Tensor]:
        self.passes += 1
        return super().__iter__()


@pytest.mark.slow
def test_the_samples_of_rough_divergences_are_read_once() -> None:
    model, batches = pruning_nets.build("residual"), Counted(pruning_nets.batches("residual", n=160))
    study = sr.study(model, batches, draws=1, progress=False)
    rivals = seams.Rivals(
        study,
        lambda *_: pytest.fail("no plan is made"),
        None,
        max_damage=1.1,
        builds=seams.Builds(study, "compress"),
        competes=True,
    )
    plan, passes, values = study.plan(macs=0.5), [], []
    for _ in range(3):
        before = batches.passes
        values.append(seams.rough_divergence(rivals, plan))
        passes.append(batches.passes - before)
    assert passes[1:] == [passes[0] - 1] * 2
    assert values[1:] == values[:1] * 2


@pytest.mark.parametrize("name", ["plain", "transformer"])
def test_half_precision_weights(name: str) -> None:
    model = pruning_nets.build(name).bfloat16()
    batches = [batch.bfloat16() for batch in pruning_nets.batches(name)]
    study = sr.study(model, batches, draws=1, progress=False)
    plan = study.plan(macs=0.6)
    assert plan.groups
    result = study.apply(plan)
    assert result.after == plan.after
    assert result.plan.groups == plan.groups
    assert {p.dtype for p in result.model.parameters()} == {torch.bfloat16}
    assert result.after.bytes == 2 * result.after.params


def test_skipped_layers_keep_their_weights() -> None:
    model, batches = pruning_nets.build("residual"), pruning_nets.batches("residual")
    study = sr.study(model, batches, skip=("layer1.conv1",), draws=1, progress=False)
    table = " ".join(study.groups().split())
    assert "- stem, layer1.conv1: the caller skips layer1.conv1, which is part of it" in table
    assert list(study.structure.channels.blocks) == ["layer2"]
    plan = study.plan(macs=0.55)
    assert set(plan.groups) <= {"layer2.conv1"}
    result = study.apply(plan)
    assert torch.equal(result.model.layer1.conv1.weight, model.layer1.conv1.weight)
    check(result, plan, "residual", model)
    with pytest.raises(sr.OptionError, match=r"nothing can go \(the caller skips layer1.conv1"):
        sr.Plan.manual(study, {"layer1.conv1": ("channel_pruning", 0.5)})


def test_fits_of_their_own() -> None:
    study = studied("plain")
    result = study.apply(study.plan(macs=0.6, methods=PRUNING), sequential=False)
    assert {layer.fit for layer in result.layers if layer.fit} == {"independent"}
    assert result.after == result.plan.after


@pytest.mark.parametrize("name", ["plain", "mlp"])
def test_widths_and_ranks_are_multiples(name: str) -> None:
    study = studied(name)
    plan = study.plan(macs=0.55, multiple_of=4)
    assert plan.groups
    assert all(len(kept) % 4 == 0 for kept in plan.groups.values())
    assert all(setting.rank % 4 == 0 for setting in plan.settings.values())
    check(study.apply(plan), plan, name, pruning_nets.build(name))


def test_widths_by_hand_are_rounded_up() -> None:
    plan = sr.Plan.manual(studied("mlp"), {"0": ("channel_pruning", 0.5)}, multiple_of={"0": 16})
    assert len(plan.groups["0"]) == 32


# --- plans by hand ---


def test_channels_block_and_both_methods_by_hand(tmp_path: Path) -> None:
    study, model = studied("residual"), pruning_nets.build("residual")
    plan = sr.Plan.manual(
        study,
        {
            "stem": ("channel_pruning", {"channels_kept": [0, 2, 3, 5, 7, 8, 11]}),
            "layer1": "drop",
            "layer2.conv1": [
                ("channel_pruning", {"keep": 12}),
                ("weight_svd", {"rank": 5, "form": "kxk_1x1"}),
            ],
        },
    )
    assert plan.dropped == ("layer1",)
    result = study.apply(plan)
    check(result, plan, "residual", model)
    built = result.model
    assert type(built.layer1) is nn.Identity
    assert torch.equal(built.stem.weight, model.stem.weight[[0, 2, 3, 5, 7, 8, 11]])
    first, second = built.layer2.conv1
    assert (first.weight.shape, second.weight.shape) == ((5, 7, 3, 3), (12, 5, 1, 1))
    assert built.layer2.norm1.num_features == 12
    assert built.fc.in_features == 7
    rows = {layer.name: layer for layer in result.layers}
    assert rows["layer1.conv1"].after.params == rows["layer1.conv2"].after.macs == 0
    assert rows["layer2.conv1"].setting is not None
    assert rows["layer2.conv1"].slimmed is not None
    assert rows["stem"].slimmed is not None
    for text in (result.summary(), repr(plan)):
        assert text.isascii()
    result.save(tmp_path / "result")
    loaded = sr.load(tmp_path / "result", model=pruning_nets.build("residual"))
    assert torch.equal(outputs(loaded, "residual"), outputs(built, "residual"))
    replayed = sr.apply(model, plan, pruning_nets.batches("residual"), draws=2, progress=False)
    assert same_state(replayed.model, built)


def test_whole_heads_go_with_their_sizes() -> None:
    study = studied("transformer")
    plan = sr.Plan.manual(study, {"layer.attention.query": ("channel_pruning", {"channels_kept": [1, 3]})})
    attention = study.apply(plan).model.layer.attention
    assert (attention.num_attention_heads, attention.all_head_size, attention.attention_head_size) == (
        2,
        12,
        6,
    )
    original = pruning_nets.build("transformer").layer.attention
    places = torch.cat([torch.arange(6, 12), torch.arange(18, 24)])
    for name in ("query", "key", "value"):
        assert torch.equal(getattr(attention, name).weight, getattr(original, name).weight[places])


def test_grouped_convolutions_lose_whole_groups() -> None:
    study = studied("grouped")
    groups = study.structure.channels.groups
    whole = next(
        name for name, group in groups.items() if group.reason is None and "leave" in group.consumers
    )
    plan = sr.Plan.manual(study, {whole: ("channel_pruning", {"keep": 2})})
    model = study.apply(plan).model
    assert (model.grouped.groups, model.grouped.in_channels, model.grouped.out_channels) == (2, 8, 16)


# --- means ---


def test_a_batch_norm_takes_up_the_mean() -> None:
    study, model = studied("plain"), pruning_nets.build("plain")
    plan = sr.Plan.manual(study, {"stem": ("channel_pruning", {"keep": 4})})
    result = study.apply(plan)
    built = result.model
    assert built.deep.bias is None
    assert result.after.params == sum(p.numel() for p in built.parameters())
    assert not torch.equal(built.norm2.running_mean, model.norm2.running_mean)
    assert torch.equal(built.norm2.running_var, model.norm2.running_var)
    assert torch.equal(built.norm1.running_mean, model.norm1.running_mean[list(plan.groups["stem"])])
    means = [mean_after(one, one.norm2) for one in (model, built)]
    # Over the samples that served the fit, the mean stays as it was; a fifth of them was held out.
    torch.testing.assert_close(means[1], means[0], rtol=0, atol=0.2)
    with torch.no_grad():
        built.norm2.running_mean.copy_(model.norm2.running_mean)
    assert (mean_after(built, built.norm2) - means[0]).norm() > 2 * (means[1] - means[0]).norm()


def mean_after(model: nn.Module, norm: nn.Module) -> Tensor:
    """Mean of what a norm of the plain network returns, per channel."""
    seen: list[Tensor] = []
    with norm.register_forward_hook(lambda _m, _i, output: seen.append(output)), torch.no_grad():
        for batch in pruning_nets.batches("plain"):
            model(batch)
    return torch.cat(seen).mean((0, 2, 3))


def test_a_bias_is_made_where_nothing_takes_up_the_mean() -> None:
    model = pruning_nets.build("mlp")
    model[2].bias = None
    study = sr.study(model, pruning_nets.batches("mlp"), draws=1, progress=False)
    plan = sr.Plan.manual(study, {"0": ("channel_pruning", {"keep": 24})})
    result = study.apply(plan)
    assert result.after == plan.after
    assert result.model[2].bias.shape == (40,)
    assert model[2].bias is None
    assert study.before.params - plan.after.params == 24 * (24 + 1) + 24 * 40 - 40
    # Weights alone tell of no mean; the bias is there all the same, so that plan and next step fit.
    bare = sr.apply(model, plan, progress=False)
    assert bare.after == plan.after
    assert not bare.model[2].bias.any()


# --- two steps ---


@pytest.mark.slow
def test_two_steps_with_channels_in_both(tmp_path: Path) -> None:
    model, batches = pruning_nets.build("plain"), pruning_nets.batches("plain")
    study = studied("plain")
    first = study.apply(study.plan(macs=0.75, methods=PRUNING))
    second = sr.study(first, batches, draws=1, progress=False)
    plan = second.plan(macs=0.5, relative_to="original")
    assert len(plan.steps) == 2
    assert plan.steps[0].groups
    assert plan.steps[1].groups
    result = second.apply(plan)
    assert result.after == plan.after
    assert result.keep_ratio("macs") <= 0.5
    result.save(tmp_path / "result")
    loaded = sr.load(tmp_path / "result", model=pruning_nets.build("plain", seed=3))
    assert same_state(loaded, result.model)
    plan.save(tmp_path / "plan.json")
    again = sr.Plan.load(tmp_path / "plan.json")
    assert again == plan
    replayed = sr.apply(model, again, batches, progress=False)
    assert replayed.after == plan.after
    assert replayed.divergence is not None
    third = sr.study(result, batches, draws=1, progress=False)
    assert len(third.plan(macs=0.9).steps) == 3


def test_a_first_step_that_did_not_make_the_model_is_refused() -> None:
    study, batches = studied("plain"), pruning_nets.batches("plain")
    first = study.apply(study.plan(macs=0.75, methods=PRUNING))
    with pytest.raises(sr.PlanError, match="previous: it made a model of"):
        sr.study(pruning_nets.build("plain"), batches, previous=first.plan, progress=False)


# --- competition ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "transformer"])
def test_the_best_of_all_plans_is_returned(name: str) -> None:
    model, batches = pruning_nets.build(name), pruning_nets.batches(name)
    result = sr.compress(model, batches, macs=0.6, draws=2, progress=False)
    assert result.after == result.plan.after
    assert result.keep_ratio("macs") <= 0.6
    assert result.divergence is not None
    lines = [note.text for note in result.notes if note.where == "compete"]
    built = [line for line in lines if "plan: held-out divergence " in line]
    values = [float(line.split("divergence ")[1].split()[0]) for line in built]
    assert float(f"{result.divergence:.4g}") == min(values)
    # What the recalibrated plan needs of the others is measured, whether they are built or not.
    pairs = "weight_svd only" if name == "transformer" else "weight_svd and spatial_svd"
    for label in ("optimal, channel_pruning only", f"optimal, {pairs}"):
        (told,) = [line for line in lines if line.startswith(f"{label} plan:")]
        assert "divergence" in told or "the same as" in told
    study = studied(name)
    joint = study.apply(study.plan(macs=0.6)).divergence
    assert joint is not None
    assert result.divergence <= joint


class TwoScales(nn.Module):
    """A tower that is called on maps of two sizes, as detectors have."""

    def __init__(self) -> None:
        super().__init__()
        self.fine = nn.Conv2d(3, 16, 3, padding=1)
        self.coarse = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.tower = nn.Conv2d(16, 12, 3, padding=1)
        self.head = nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.fine(x).relu()
        coarse = self.coarse(fine).relu()
        return [self.head(self.tower(level).relu()) for level in (fine, coarse)]


def test_layers_that_are_called_twice_are_fitted_to_all_calls() -> None:
    torch.manual_seed(0)
    model = TwoScales()
    batches = [torch.randn(16, 3, 8, 8).cumsum(2) / 3 for _ in range(3)]
    study = sr.study(model, batches, methods=PRUNING, draws=2, progress=False)
    groups = study.structure.channels.groups
    assert groups["fine"].consumers == ("coarse", "tower")
    assert groups["tower"].consumers == ("head",)
    plan = sr.Plan.manual(study, {"fine": ("channel_pruning", 0.75), "tower": ("channel_pruning", 0.75)})
    result = study.apply(plan)
    assert {layer.name: layer.fit for layer in result.layers}["tower"] == "independent"
    bare = copy.deepcopy(model)
    slim(bare, study.structure.channels, plan.groups)
    unfitted = seams.divergence_of(study, bare.eval())
    assert result.divergence is not None
    assert result.divergence < 0.75 * unfitted


# --- what turns out to be no group ---


class Wired(pruning_nets.Plain):
    """The same layers, and one width written into the code."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.stem(x)).relu()
        x = self.norm3(self.last(self.norm2(self.deep(x)).relu())).relu()
        return self.fc(x.reshape(len(x), 24, -1).mean(2))


def test_a_group_that_fails_stays_and_the_rest_is_built(tmp_path: Path) -> None:
    plan = studied("plain").plan(macs=0.4, methods=PRUNING, multiple_of=1)
    assert "last" in plan.groups
    wired = Wired().eval()
    wired.load_state_dict(pruning_nets.build("plain").state_dict())
    result = sr.apply(wired, plan, pruning_nets.batches("plain"), progress=False)
    assert "last" not in result.plan.groups
    assert set(result.plan.groups) == set(plan.groups) - {"last"}
    told = [note.text for note in result.notes if note.where == "last"]
    assert len(told) == 1
    assert "its channels all stay, so more is left: RuntimeError" in told[0]
    assert result.after == result.plan.after
    assert result.after.macs > plan.after.macs
    assert (result.plan.damage, result.plan.gap, result.plan.budgets) == (None, None, {})
    result.save(tmp_path / "result")
    loaded = sr.load(tmp_path / "result", model=Wired())
    assert torch.equal(outputs(loaded, "plain"), outputs(result.model, "plain"))
