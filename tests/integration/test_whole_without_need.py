# SPDX-License-Identifier: Apache-2.0
"""What would stay whole though nothing speaks against it: channels, blocks and layers of unusual ways."""

import copy
from pathlib import Path

import pytest
import torch
from nets import noise
from torch import Tensor, nn

import slimrank as sr


def live_groups(study: sr.Study) -> set[str]:
    return {name for name, group in study.structure.channels.groups.items() if group.reason is None}


class Clip(nn.Module):
    """Frames of a clip, folded into the batch."""

    def __init__(self, n_frames: int) -> None:
        super().__init__()
        self.n_frames = n_frames
        self.a, self.b, self.fc = nn.Linear(8, 24), nn.Linear(24, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        return self.fc(x.view(-1, self.n_frames, x.shape[1]).mean(1))


@pytest.mark.parametrize("n_frames", [3, 4])
def test_frames_that_are_folded_into_the_batch(n_frames: int) -> None:
    study = sr.study(Clip(n_frames).eval(), noise(8, size=12), draws=1, progress=False)
    assert live_groups(study) == {"a", "b"}
    result = study.apply(study.plan(macs=0.6))
    assert result.after.macs <= 0.6 * result.before.macs


class Rounded(torch.autograd.Function):
    """Gives no gradient back."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> None:
        return None


class Codec(nn.Module):
    """Gradients reach only what lies behind the rounding; one layer before it is read on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.encode = nn.Linear(12, 24), nn.Linear(24, 16)
        self.decode, self.around = nn.Linear(16, 12), nn.Linear(24, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.decode(Rounded.apply(8 * self.encode(x))) + self.around(x.detach())


def test_layers_that_no_gradient_reaches_are_weighed_by_their_inputs() -> None:
    study = sr.study(Codec().eval(), noise(12, size=32), draws=1, progress=False)
    assert set(study.grams) == {"decode", "around"}
    assert live_groups(study) == {"stem", "encode"}
    assert {curve.layer for curve in study.curves} >= {"stem", "encode"}
    (note,) = [note.text for note in study.notes if note.where == "gradients"]
    assert note.startswith(
        "no gradient reaches 2 of 4 layers ('encode', 'stem'), though the outputs depend on them"
    )
    result = study.apply(study.plan(macs=0.6))
    assert result.after.macs <= 0.6 * result.before.macs


def test_nothing_but_rounded_outputs() -> None:
    class Coded(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return Rounded.apply(8 * super().forward(x))

    study = sr.study(Coded(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 12)).eval(), noise(12), progress=False)
    assert study.grams == {}
    assert live_groups(study) == {"0"}
    assert any(note.text.startswith("no gradient reaches 2 of 2 layers") for note in study.notes)


@pytest.mark.parametrize("switch", [torch.no_grad, torch.inference_mode])
def test_a_forward_without_gradients_is_studied_like_any_other(switch: type) -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.c = nn.Linear(12, 24), nn.Linear(24, 24), nn.Linear(24, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(self.a(x).relu()).relu())

    class Switched(Plain):
        @switch()
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    plain, switched = (sr.study(kind().eval(), noise(12), progress=False) for kind in (Plain, Switched))
    assert {curve.layer for curve in switched.curves} == {"a", "b", "c"}
    for one, other in zip(plain.group_curves, switched.group_curves, strict=True):
        assert one.damage == pytest.approx(other.damage, rel=1e-4)


class Stack(nn.Module):
    """Blocks that take a condition, give scores back, and stand in a stack of torch's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 5)
        self.blocks = nn.ModuleList(Conditioned() for _ in range(2))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for block in self.blocks:
            h, _ = block(h, condition=x)
        return self.last(self.encoder(h))


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.side, self.down = nn.Linear(16, 32), nn.Linear(8, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        h = (self.up(x) + self.side(condition)).relu()
        return x + self.down(h), h.mean(-1)


@pytest.mark.slow
def test_blocks_with_several_arguments_go_and_come_back(tmp_path: Path) -> None:
    model, batches = Stack().eval(), noise(6, 8)
    study = sr.study(model, batches, draws=1, progress=False)
    names = ["blocks.0", "blocks.1", "encoder.layers.0", "encoder.layers.1"]
    assert list(study.structure.channels.blocks) == names
    assert [damage.block for damage in study.block_damages] == names
    plan = sr.Plan.manual(study, {"blocks.1": "drop", "encoder.layers.0": "drop"})
    plan.save(tmp_path / "plan.json")
    assert sr.Plan.load(tmp_path / "plan.json") == plan
    result = study.apply(plan)
    assert result.after == plan.after
    (note,) = [note.text for note in result.notes if note.where == "apply"]
    assert note.startswith("'blocks.1', 'encoder.layers.0': torch has no module for what is left of them")
    result.save(tmp_path / "small")
    loaded = sr.load(tmp_path / "small", model=Stack())
    program = torch.export.export(result.model, (batches[0],)).module()
    with torch.no_grad():
        expected = result.model(batches[0])
        for other in (loaded, copy.deepcopy(result.model), program):
            torch.testing.assert_close(other(batches[0]), expected)


class Padded(nn.Module):
    """Torch's encoder with a mask of padded positions, and its decoder."""

    def __init__(self, norm_first: bool, batch_first: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        options = {"norm_first": norm_first, "batch_first": batch_first, "dropout": 0.0}
        is_nested = batch_first and not norm_first
        layer = nn.TransformerEncoderLayer(16, 2, 32, **options)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=is_nested)
        self.decoder = nn.TransformerDecoderLayer(16, 2, 32, **options)
        self.last, self.batch_first = nn.Linear(16, 4), batch_first

    def forward(self, x: Tensor) -> Tensor:
        padding = torch.arange(x.shape[1], device=x.device)[None].expand(x.shape[:2]) > 2
        h = x if self.batch_first else x.transpose(0, 1)
        memory = self.encoder(h, src_key_padding_mask=padding)
        return self.last(self.decoder(h, memory, memory_key_padding_mask=padding).mean(self.batch_first * 1))


@pytest.mark.slow
@pytest.mark.parametrize(("norm_first", "batch_first"), [(False, True), (True, True), (True, False)])
def test_torchs_transformers_lose_ranks_and_heads(
    norm_first: bool, batch_first: bool, tmp_path: Path
) -> None:
    batches = noise(4, 16)
    study = sr.study(Padded(norm_first, batch_first).eval(), batches, draws=1, progress=False)
    layers = [f"{part}.linear{i}" for part in ("encoder.layers.0", "decoder") for i in (1, 2)]
    assert {curve.layer for curve in study.curves} >= set(layers)
    assert live_groups(study) >= {layers[0], layers[2]}
    attentions = ["encoder.layers.0.self_attn", "decoder.self_attn", "decoder.multihead_attn"]
    assert live_groups(study) >= {*attentions, *(f"{name}#2" for name in attentions)}
    heads = {name: ("channel_pruning", 0.5) for name in attentions}
    plan = sr.Plan.manual(study, {**dict.fromkeys(layers, ("weight_svd", 0.5)), **heads})
    result = study.apply(plan)
    assert result.after == plan.after
    assert {result.model.get_submodule(name).num_heads for name in attentions} == {1}
    assert all(isinstance(result.model.get_submodule(name), nn.Sequential) for name in layers)
    result.save(tmp_path / "small")
    loaded = sr.load(tmp_path / "small", model=Padded(norm_first, batch_first))
    with torch.no_grad():
        expected = result.model(batches[0])
        for other in (loaded, copy.deepcopy(result.model)):
            torch.testing.assert_close(other(batches[0]), expected)
        program = torch.export.export(result.model, (batches[0],)).module()
        torch.testing.assert_close(program(batches[0]), expected)


@pytest.mark.slow
def test_a_second_step_takes_what_the_first_left_of_heads_and_blocks(tmp_path: Path) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
            self.encoder, self.last = nn.TransformerEncoder(layer, 2), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.encoder(x))

    batches = noise(4, 16)
    first = sr.study(Encoder().eval(), batches, draws=1, progress=False)
    wish = {"encoder.layers.0.self_attn": ("channel_pruning", 0.5), "encoder.layers.1": "drop"}
    half = first.apply(sr.Plan.manual(first, wish))
    second = sr.study(half, batches, draws=1, progress=False)
    assert second.structure.channels.groups["encoder.layers.0.self_attn"].units == 2
    wish = {"encoder.layers.0.self_attn": ("channel_pruning", 0.5)}
    result = second.apply(sr.Plan.manual(second, wish))
    assert result.after == result.plan.after
    assert result.model.encoder.layers[0].self_attn.num_heads == 1
    result.save(tmp_path / "small")
    with torch.no_grad():
        expected = result.model(batches[0])
        torch.testing.assert_close(sr.load(tmp_path / "small", model=Encoder())(batches[0]), expected)
