# SPDX-License-Identifier: Apache-2.0
"""Every kind of model goes through: nothing crashes, what can be compressed is, and the rest has a reason."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import slimrank as sr

FACTORS = ("weight_svd", "spatial_svd")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One model, its data, and what must become of it.

    Attributes:
        build: the model.
        batches: its data.
        compressible: names of all layers that can be split into a pair.
        reasons: layer -> words in the reason why it is left alone, unless its channels may go.
        notes: words that must stand in the notes.
        options: of the study.
        macs: keep ratio to ask for.
    """

    build: Callable[[ModuleType], nn.Module]
    batches: Callable[[ModuleType], Sequence[object]]
    compressible: Sequence[str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    options: Mapping[str, object] = field(default_factory=dict)
    macs: float = 0.7


def _frozen(n: ModuleType) -> nn.Module:
    return n.mlp().requires_grad_(requires_grad=False)


def _hooked(n: ModuleType) -> nn.Module:
    model = n.mlp()
    model[2].register_forward_hook(lambda _m, _i, output: output * 1.5)
    return model


def _old_weight_norm(n: ModuleType) -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(24, 32)), nn.ReLU(), nn.Linear(32, 32)).eval()


def _used_mixed(n: ModuleType) -> nn.Module:
    model = n.settle(n.MixedTypes())
    model(n.noise(24)[0])
    return model


CASES = {
    "mlp": Case(build=lambda n: n.mlp(), batches=lambda n: n.noise(24), compressible=["0", "2", "4"]),
    "cnn with batch norm and in-place activations": Case(
        build=lambda n: n.cnn(),
        batches=lambda n: n.noise(1, 8, 8),
        compressible=["stem", "conv", "last", "fc"],
    ),
    "control flow": Case(
        build=lambda n: n.settle(n.Control()),
        batches=lambda n: n.noise(24),
        compressible=["a", "b", "c"],
    ),
    "two positional inputs": Case(
        build=lambda n: n.settle(n.TwoInputs()),
        batches=lambda n: list(zip(n.noise(24), n.noise(16, seed=1), strict=True)),
        compressible=["left", "right", "out"],
    ),
    "keyword inputs, one of them no tensor": Case(
        build=lambda n: n.settle(n.TwoInputs()),
        batches=lambda n: [
            {"a": a, "b": b, "scale": 0.5} for a, b in zip(n.noise(24), n.noise(16, seed=1), strict=True)
        ],
        compressible=["left", "right", "out"],
    ),
    "a mapping as one argument": Case(
        build=lambda n: n.settle(n.Tupled()),
        batches=lambda n: [({"x": x},) for x in n.noise(24)],
        compressible=["a", "out"],
    ),
    "integer tokens": Case(
        build=lambda n: n.settle(n.TokenNet()),
        batches=lambda n: n.tokens(),
        compressible=["mix", "head"],
        reasons={"embed": "no method for Embedding"},
    ),
    "dict output": Case(
        build=lambda n: n.settle(n.DictOutput()),
        batches=lambda n: n.noise(24),
        compressible=["body", "head"],
        # Logits are taken where there are any; the boxes do not matter then.
        reasons={"box": "no gradient of the chosen outputs reaches it"},
        notes=["logits"],
    ),
    "dataclass output": Case(
        build=lambda n: n.settle(n.DataclassOutput()),
        batches=lambda n: n.noise(24),
        compressible=["body", "head", "box"],
        notes=["scores", "hidden"],
    ),
    "tuple output with None and a list": Case(
        build=lambda n: n.settle(n.TupleOutput()),
        batches=lambda n: n.noise(24),
        compressible=["body", "head", "box"],
    ),
    "outputs by index": Case(
        build=lambda n: n.settle(n.TupleOutput()),
        batches=lambda n: n.noise(24),
        compressible=["body", "head"],
        reasons={"box": "no gradient"},
        options={"outputs": 0},
    ),
    "transformer encoder": Case(
        build=lambda n: n.settle(n.Encoder()).eval(),
        batches=lambda n: n.noise(6, 24),
        compressible=["head", *(f"encoder.layers.{i}.linear{j}" for i in (0, 1) for j in (1, 2))],
        reasons={
            "encoder.layers.0.self_attn": "no method for MultiheadAttention",
            "encoder.layers.0.self_attn.out_proj": "never called",
        },
        macs=0.9,
    ),
    "a parent that reads a weight": Case(
        build=lambda n: n.settle(n.ReadsWeight()),
        batches=lambda n: n.noise(24),
        compressible=["out"],
        reasons={"fc": "never called as a module; its weight is read by", "used": "its parent uses more"},
        macs=0.97,
    ),
    "tied weights": Case(
        build=lambda n: n.settle(n.TiedWeights()),
        batches=lambda n: n.tokens(),
        compressible=["mix", "back"],
        reasons={"head": "shared with another module", "embed": "no method"},
    ),
    "tied bias": Case(
        build=lambda n: n.settle(n.TiedBias()),
        batches=lambda n: n.noise(24),
        compressible=["out"],
        reasons={"a": "shared", "b": "shared"},
        macs=0.9,
    ),
    "parametrised weights": Case(
        build=lambda n: n.Normed().eval(),
        batches=lambda n: n.noise(24),
        compressible=["parametrized", "spectral", "plain", "out"],
    ),
    "old weight norm": Case(
        build=_old_weight_norm,
        batches=lambda n: n.noise(24),
        compressible=["0", "2"],
    ),
    "a layer called twice": Case(
        build=lambda n: n.settle(n.Twice()),
        batches=lambda n: n.noise(24),
        compressible=["a", "again", "out"],
    ),
    "a module under two names": Case(
        build=lambda n: n.settle(n.TwoNames()), batches=lambda n: n.noise(24), compressible=["a", "out"]
    ),
    "a layer never called": Case(
        build=lambda n: n.settle(n.NeverCalled()),
        batches=lambda n: n.noise(24),
        compressible=["a", "out"],
        reasons={"spare": "never called"},
    ),
    "a reference in a plain list": Case(
        build=lambda n: n.settle(n.PlainList()),
        batches=lambda n: n.noise(24),
        compressible=["a", "out"],
        reasons={"hidden": "another reference"},
    ),
    "convolutions of all kinds": Case(
        build=lambda n: n.settle(n.Convs()),
        batches=lambda n: n.noise(3, 8, 8),
        compressible=["stem", "grouped", "plain", "reflect", "head"],
        reasons={
            "depthwise": "depthwise convolution",
            "own": "OwnConv has a forward of its own",
            "up": "no method for ConvTranspose2d",
        },
    ),
    "one and three dimensions": Case(
        build=lambda n: n.settle(n.OtherDims()),
        batches=lambda n: n.noise(4, 17),
        compressible=["one", "two", "three", "four", "out"],
    ),
    "lstm": Case(
        build=lambda n: n.settle(n.Recurrent()),
        batches=lambda n: n.noise(5, 24),
        compressible=["lstm", "fc", "out"],
    ),
    "a list of images of several sizes": Case(
        build=lambda n: n.settle(n.Detector()),
        batches=lambda n: [
            ([n.noise(8, 8, n=1, size=3, seed=seed)[0], n.noise(6, 9, n=1, size=3)[0]],) for seed in range(3)
        ],
        compressible=["conv", "deep", "head"],
    ),
    "a backbone under no_grad": Case(
        build=lambda n: n.settle(n.FrozenBackbone()),
        batches=lambda n: n.noise(24),
        compressible=["backbone", "head"],
        macs=0.8,
    ),
    "layers called by keyword": Case(
        build=lambda n: n.settle(n.KeywordLayers()),
        batches=lambda n: [{"x": x} for x in n.noise(24)],
        compressible=["a", "out"],
    ),
    "parameters beside layers": Case(
        build=lambda n: n.settle(n.OwnParameter()),
        batches=lambda n: n.noise(6, 24),
        compressible=["block.inner.fc", "out"],
        reasons={"": "no method for OwnParameter", "block.inner": "no method for Placed"},
    ),
    "experts chosen by the data": Case(
        build=lambda n: n.settle(n.Mixture()),
        batches=lambda n: n.noise(24, n=6),
        compressible=["gate", "out"],
        options={"skip": ("experts.*",)},
        reasons={"experts.0": "skipped by the caller", "experts.1": "skipped by the caller"},
    ),
    "bfloat16": Case(
        build=lambda n: n.mlp().bfloat16(),
        batches=lambda n: [x.bfloat16() for x in n.noise(24)],
        compressible=["0", "2", "4"],
    ),
    "float16": Case(
        build=lambda n: n.cnn().half(),
        batches=lambda n: [x.half() for x in n.noise(1, 8, 8)],
        compressible=["stem", "conv", "last", "fc"],
    ),
    "float64": Case(
        build=lambda n: n.mlp().double(),
        batches=lambda n: [x.double() for x in n.noise(24)],
        compressible=["0", "2", "4"],
    ),
    "all parameters frozen": Case(build=_frozen, batches=lambda n: n.noise(24), compressible=["0", "2", "4"]),
    "a hook of the caller on a layer": Case(
        build=_hooked, batches=lambda n: n.noise(24), compressible=["0", "4"], reasons={"2": "hooks"}
    ),
    "train mode": Case(
        build=lambda n: n.cnn().train(),
        batches=lambda n: n.noise(1, 8, 8),
        compressible=["stem", "conv", "last", "fc"],
    ),
    "batch in the second dimension": Case(
        build=lambda n: n.settle(n.LengthFirst()),
        batches=lambda n: n.noise(4, 24, size=6),
        compressible=["gru", "fc", "out"],
        notes=["one batch counts as one sample"],
        macs=0.85,
    ),
    "one sample": Case(
        build=lambda n: n.mlp(),
        batches=lambda n: n.noise(24, n=1, size=1),
        compressible=["0", "2", "4"],
        notes=["one sample only"],
    ),
    "batches of uneven size": Case(
        build=lambda n: n.mlp(),
        batches=lambda n: [n.noise(24, n=1, size=size)[0] for size in (7, 1, 4)],
        compressible=["0", "2", "4"],
    ),
    "sequences of uneven length": Case(
        build=lambda n: n.settle(n.TokenNet()),
        batches=lambda n: [n.tokens(length=length, n=1)[0] for length in (3, 9, 5)],
        compressible=["mix", "head"],
    ),
    "two dtypes, None for an input, an activation kept": Case(
        build=_used_mixed, batches=lambda n: [(x, None) for x in n.noise(24)], compressible=["a", "out"]
    ),
    "gradient checkpoints": Case(
        build=lambda n: n.settle(n.Checkpointed()),
        batches=lambda n: n.noise(24),
        compressible=["a", "out"],
    ),
    "without output gradients": Case(
        build=lambda n: n.cnn(),
        batches=lambda n: n.noise(1, 8, 8),
        compressible=["stem", "conv", "last", "fc"],
        options={"fisher": False},
    ),
    "without data": Case(
        build=lambda n: n.cnn(),
        batches=lambda n: n.noise(1, 8, 8),
        compressible=["stem", "conv", "last", "fc"],
        options={"data_free": True},
        notes=["data-free"],
    ),
}


def counted(model: nn.Module, sample: object) -> int:
    """MACs of one forward by torch's own counter, every layer called as a module."""
    counter = FlopCounterMode(display=False)
    args = sample if isinstance(sample, tuple) else () if isinstance(sample, dict) else (sample,)
    kwargs = sample if isinstance(sample, dict) else {}
    modes = {module: module.training for module in model.modules()}
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), counter:
            model.eval()(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
        for module, training in modes.items():
            module.training = training
    return counter.get_total_flops() // 2


def batch_of(raw: object) -> tuple[tuple[object, ...], dict[str, object]]:
    if isinstance(raw, dict):
        return (), raw
    return (raw, {}) if isinstance(raw, tuple) else ((raw,), {})


@pytest.mark.slow
@pytest.mark.parametrize("methods", [FACTORS, sr.METHODS], ids=["factors", "all methods"])
@pytest.mark.parametrize("name", CASES)
def test_study_plan_apply(
    name: str, methods: Sequence[str], nets: ModuleType, snapshot: Callable[[nn.Module], object]
) -> None:
    case = CASES[name]
    model, batches = case.build(nets), case.batches(nets)
    before = snapshot(model)
    state = torch.get_rng_state()

    study = sr.study(model, batches, progress=False, methods=methods, **case.options)
    plan = study.plan(macs=case.macs)
    result = study.apply(plan)

    assert snapshot(model) == before
    assert torch.equal(torch.get_rng_state(), state)
    check_layers(case, study, methods)
    told = "\n".join(str(note) for note in (*study.notes, *result.notes))
    for words in case.notes:
        assert words in told
    assert result.after == plan.after
    assert result.keep_ratio("macs") <= case.macs
    assert isinstance(result.divergence, float)
    assert result.divergence >= 0
    assert result.divergence < float("inf")
    check_model(model, result, batches)
    assert {layer.name for layer in result.layers if layer.setting} == set(plan.settings)
    for layer in result.layers:
        assert (layer.setting is None and layer.slimmed is None) == (layer.reason is not None)
    # Nothing is counted twice: what the layers hold is at most what the model costs.
    assert sum(spec.macs for spec in study.layers) <= study.before.macs
    for cost in ("before", "after"):
        listed = sum(getattr(layer, cost).macs for layer in result.layers)
        assert listed <= getattr(result, cost).macs


def check_layers(case: Case, study: sr.Study, methods: Sequence[str]) -> None:
    """Every layer that can be split is, and the others say why; channels may go from more of them."""
    specs = {spec.name: spec for spec in study.layers}
    split = sorted(name for name, spec in specs.items() if set(spec.methods) & set(FACTORS))
    assert split == sorted(case.compressible)
    groups = study.structure.channels.groups.values()
    makers = {name for group in groups if group.reason is None for name in group.producers}
    assert makers == {name for name, spec in specs.items() if "channel_pruning" in spec.methods}
    assert not makers or "channel_pruning" in methods
    assert all(bool(spec.methods) != bool(spec.reason) for spec in specs.values())
    for layer, words in case.reasons.items():
        if layer in makers:
            continue
        assert words in (specs[layer].reason or ""), f"{layer}: {specs[layer].reason}"
        # Broken into lines there.
        assert "".join(str(specs[layer].reason).split()) in "".join(study.summary().split())


def check_model(model: nn.Module, result: sr.Result, batches: Sequence[object]) -> None:
    """It holds what it says, in the types and modes of the original, and runs."""
    params = list(result.model.parameters())
    assert result.after.params == sum(p.numel() for p in params)
    assert result.after.bytes == sum(p.numel() * p.element_size() for p in params)
    assert {p.dtype for p in params} == {p.dtype for p in model.parameters()}
    assert [m.training for m in result.model.modules()].count(True) == (
        0 if not model.training else len(list(result.model.modules()))
    )
    with torch.no_grad():
        args, kwargs = batch_of(batches[0])
        result.model(*args, **kwargs)
        assert type(result.model) is type(model)
    own = {module.__module__ for module in result.model.modules()}
    assert all(where == "nets" or where.startswith(("torch.", "test_models")) for where in own), own


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "mlp",
        "cnn with batch norm and in-place activations",
        "a layer called twice",
        "a module under two names",
        "convolutions of all kinds",
        "one and three dimensions",
        "integer tokens",
        "train mode",
    ],
)
def test_costs_are_what_torch_counts(name: str, nets: ModuleType) -> None:
    case = CASES[name]
    model, batches = case.build(nets), case.batches(nets)
    study = sr.study(model, batches, progress=False)
    result = study.apply(study.plan(macs=0.6))
    sample = batches[0][:1]
    assert result.before.macs == counted(model, sample)
    assert result.after.macs == counted(result.model, sample)
    assert sum(layer.after.macs for layer in result.layers) == result.after.macs


def test_a_layer_called_twice_costs_twice(nets: ModuleType) -> None:
    study = sr.study(nets.settle(nets.Twice()), nets.noise(24), progress=False)
    again = next(spec for spec in study.layers if spec.name == "again")
    assert again.macs == 2 * 32 * 32
    assert len(again.calls) == 2


def test_a_module_under_two_names_stays_one_module(nets: ModuleType) -> None:
    model = nets.settle(nets.TwoNames())
    study = sr.study(model, nets.noise(24), progress=False)
    result = study.apply(sr.Plan.manual(study, {"a": ("weight_svd", {"rank": 4})}))
    assert result.model.a is result.model.same
    assert isinstance(result.model.a, nn.Sequential)


def test_modes_hold_module_by_module(nets: ModuleType) -> None:
    model = nets.cnn().train()
    model.bn.eval()
    model.conv.eval()
    result = sr.compress(model, nets.noise(1, 8, 8), macs=0.6, compete=False, progress=False)
    assert result.model.training
    assert result.model.fc.training
    assert not result.model.bn.training
    assert not result.model.conv.training
    assert all(not part.training for part in result.model.conv.modules())


def test_frozen_layers_stay_frozen(nets: ModuleType) -> None:
    model = nets.mlp()
    model[0].requires_grad_(requires_grad=False)
    result = sr.compress(model, nets.noise(24), macs=0.6, compete=False, progress=False)
    assert not any(p.requires_grad for p in result.model[0].parameters())
    assert all(p.requires_grad for p in result.model[4].parameters())


def test_a_hook_of_the_caller_still_works_on_the_result(nets: ModuleType) -> None:
    seen: list[int] = []
    model = nets.mlp()
    model[1].register_forward_hook(lambda _m, _i, output: seen.append(len(output)))
    result = sr.compress(model, nets.noise(24), macs=0.6, compete=False, progress=False)
    seen.clear()
    result.model(nets.noise(24)[0])
    assert seen == [8]


@pytest.mark.slow
def test_transformer_encoder_fast_path_and_training(nets: ModuleType) -> None:
    model, batches = nets.settle(nets.Encoder()).eval(), nets.noise(6, 24)
    study = sr.study(model, batches, progress=False)
    result = study.apply(study.plan(macs=0.985))
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():
        fast = result.model(batches[0])
    slow = result.model(batches[0])
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-4)
    result.model.train()(batches[0]).square().mean().backward()
    assert all(p.grad is not None for p in result.model.head.parameters())


def test_layers_called_by_keyword_are_fitted_to_data(nets: ModuleType) -> None:
    model = nets.settle(nets.KeywordLayers())
    result = sr.compress(model, [{"x": x} for x in nets.noise(24)], macs=0.6, compete=False, progress=False)
    assert {layer.fit for layer in result.layers if layer.setting} <= {"sequential", "independent"}


def test_the_callers_data_is_not_changed(nets: ModuleType) -> None:
    model = nn.Sequential(nn.ReLU(inplace=True), *nets.mlp()).eval()
    for size in (1, 8):
        batches = nets.noise(24, n=4, size=size)
        before = [batch.clone() for batch in batches]
        sr.compress(model, batches, macs=0.6, progress=False)
        assert all(torch.equal(a, b) for a, b in zip(before, batches, strict=True))


def test_a_model_whose_outputs_are_detached_says_what_to_do(nets: ModuleType) -> None:
    class Closed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nets.mlp()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(x).detach() * 2

    with pytest.raises(sr.GradientError, match=r"no gradient .*outputs=.*fisher=False"):
        sr.study(Closed(), nets.noise(24), progress=False)
    result = sr.compress(Closed(), nets.noise(24), macs=0.6, fisher=False, progress=False)
    assert result.keep_ratio("macs") <= 0.6


def test_a_model_whose_backward_pass_fails_is_told_to_leave_gradients_out(nets: ModuleType) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(24, 24), nn.Linear(24, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu_(self.a(x))
            h += self.b(h)
            return h

    model, batches = nets.settle(InPlace()), nets.noise(24)
    with pytest.raises(sr.GradientError, match=r"backward pass through the model failed .*fisher=False"):
        sr.study(model, batches, progress=False)
    assert sr.study(model, batches, fisher=False, progress=False).layers[0].methods
