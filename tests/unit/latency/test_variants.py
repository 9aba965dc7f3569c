# SPDX-License-Identifier: Apache-2.0
"""Variants of a network, from their draw to the modules."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import seams
import slimrank as sr
from slimrank.cost import forms_of, layer_cost, pair_cost, slimmed_spec
from slimrank.forward import Batch
from slimrank.latency import build_variant, draw_variants, untouched
from slimrank.plan import kernel_group_steps, rounding_steps


@pytest.fixture(scope="module")
def study() -> sr.Study:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1),
        nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 36, 10),
    ).eval()  # fmt: skip
    return sr.study(model, [torch.randn(4, 4, 6, 6)], data_free=True, effort="fast", progress=False)


def test_variants_show_each_layer_in_all_its_forms(study: sr.Study) -> None:
    variants = draw_variants(study.structure, study.methods, count=8, step=4, seed=0)
    again = draw_variants(study.structure, study.methods, count=8, step=4, seed=0)
    other = draw_variants(study.structure, study.methods, count=8, step=4, seed=1)
    assert [variant.key for variant in variants] == [variant.key for variant in again]
    assert [variant.key for variant in variants] != [variant.key for variant in other]
    for name in ("3", "5"):
        found = {variant.settings[name].form if name in variant.settings else None for variant in variants}
        forms = {form for method in study.methods for form in forms_of(study.structure.layers[name], method)}
        assert found == {None, *forms}
    for name in ("0", "3", "5"):
        widths = {len(variant.groups.get(name, range(32))) for variant in variants}
        assert len(widths) >= 3
        assert all(width % 4 == 0 for width in widths)


def test_ranks_are_on_the_grid_and_cost_less_than_the_layer(study: sr.Study) -> None:
    for variant in draw_variants(study.structure, study.methods, count=8, step=4, seed=0):
        for name, setting in variant.settings.items():
            spec = slimmed_spec(study.structure.layers[name], study.structure.channels, variant.groups)
            assert setting.rank % 4 == 0
            pair = pair_cost(spec, setting.form, setting.rank, has_bias=False)
            assert pair.macs < layer_cost(spec).macs


def test_three_factors_are_not_timed(study: sr.Study) -> None:
    layers = {
        name: replace(spec, methods=("tucker2",) if "spatial_svd" in spec.methods else ())
        for name, spec in study.structure.layers.items()
    }
    structure = replace(study.structure, layers=layers)
    assert not any(step.settings for step in draw_variants(structure, ("tucker2",), count=4, step=4, seed=0))
    assert seams.shared_step(structure, ("tucker2",)) == 4


def test_the_shared_step_is_the_largest_that_leaves_most_layers_several_sizes(study: sr.Study) -> None:
    def step_at(width: int) -> int:
        model = nn.Sequential(
            nn.Conv2d(4, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3)
        )
        made = sr.study(
            model.eval(), [torch.randn(2, 4, 8, 8)], data_free=True, effort="fast", progress=False
        )
        return seams.shared_step(made.structure, made.methods)

    # 16 and 32 of 48; 8 and 16 of 24; of 12 channels only steps of 4 leave two sizes.
    assert [step_at(width) for width in (48, 24, 12)] == [16, 8, 4]
    assert seams.shared_step(study.structure, ()) == 4


def test_useful_ranks_end_where_a_pair_costs_its_layer(study: sr.Study) -> None:
    spec = study.structure.layers["3"]
    # 9 * 32 * 32 for each position of the layer, 2 * 3 * 32 for each rank of the pair.
    assert list(seams.useful_ranks(spec, "v_h", 16)) == [16, 32]
    assert list(seams.useful_ranks(spec, "1x1_kxk", 16)) == [16]
    assert list(seams.useful_ranks(spec, "v_h", 64)) == []


def test_grouped_kernels_without_a_rank_on_the_step_are_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 32, 1),
        nn.Conv2d(32, 32, 3, groups=8),
        nn.Conv2d(32, 32, 3, groups=2),
        nn.Conv2d(32, 4, 1),
    ).eval()
    study = sr.study(model, [torch.randn(2, 4, 8, 8)], data_free=True, effort="fast", progress=False)
    structure, methods = study.structure, study.methods
    # Of 4 inputs and outputs, the pair of a group saves MACs up to rank 6 at most.
    assert seams.without_useful_rank(structure, methods, 8) == ["1"]
    assert seams.without_useful_rank(structure, methods, 4) == []
    assert seams.without_useful_rank(structure, methods, 32) == ["1", "2"]
    assert seams.without_useful_rank(structure, (), 32) == []


def test_a_variant_has_its_shapes_and_finite_outputs_and_leaves_the_model_alone(
    study: sr.Study,
) -> None:
    model = seams.original_of(study)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x = torch.randn(3, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for number, variant in enumerate(draw_variants(study.structure, study.methods, count=4, step=4, seed=0)):
        network = build_variant(model, variant, has_bias=True, seed=number)
        for name, setting in variant.settings.items():
            first, last = network.get_submodule(name).children()
            assert len(first.weight) == setting.rank
            assert last.bias is not None
        outputs, wanted = network(x), model(x)
        assert outputs.shape == wanted.shape
        # About as large as what the model makes: neither huge nor denormal.
        assert 0.01 < float(outputs.abs().mean() / wanted.abs().mean()) < 100
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_norms_of_a_variant_are_settled_on_a_sample() -> None:
    """Without, activations shrink from layer to layer, and int8 kernels are chosen by their ranges."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(4, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()]
    for _ in range(5):
        layers += [nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU()]
        layers += [nn.Conv2d(32, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    model = nn.Sequential(*layers)
    x = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    for norm in model:
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        model(x)
    model.eval().requires_grad_(requires_grad=False)
    study = sr.study(model, [x], methods=("weight_svd", "channel_pruning"), progress=False)
    sample = Batch(args=(x,), kwargs={})
    variant = draw_variants(study.structure, study.methods, count=4, step=4, seed=0)[0]
    assert variant.groups
    assert variant.settings
    loose = build_variant(model, variant, has_bias=True, seed=0)
    settled = build_variant(model, variant, has_bias=True, seed=0, sample=sample)

    def variation(network: nn.Module) -> float:
        """By how much outputs differ from sample to sample."""
        return float(network(x).std(0).mean())

    assert variation(loose) < 0.5 * variation(model)
    assert 0.7 * variation(model) < variation(settled) < 1.3 * variation(model)
    before_last = settled[:-1](x)
    assert torch.allclose(before_last.mean((0, 2, 3)), torch.zeros(len(before_last[0])), atol=1e-3)
    # The network as it stands keeps its own, and one value of each channel says nothing of how they vary.
    whole = build_variant(model, untouched(study.structure), has_bias=True, seed=0, sample=sample)
    assert torch.equal(whole[1].running_var, model[1].running_var)
    flat = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4)).eval()
    rows = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    study = sr.study(flat, [rows], data_free=True, effort="fast", progress=False)
    variant = draw_variants(study.structure, study.methods, count=1, step=4, seed=0)[0]
    single = Batch(args=(rows[:1],), kwargs={})
    built = build_variant(flat, variant, has_bias=True, seed=0, sample=single)
    assert torch.equal(built[1].running_mean, torch.zeros_like(built[1].running_mean))


def test_norms_that_are_called_by_keyword_and_in_half_precision_are_settled() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.norm = nn.Linear(8, 32, dtype=torch.bfloat16), nn.BatchNorm1d(32)
            self.two = nn.Linear(32, 4, dtype=torch.bfloat16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(self.norm(input=self.one(x)).relu())

    torch.manual_seed(0)
    model = Net().eval().requires_grad_(requires_grad=False)
    rows = torch.randn(16, 8, dtype=torch.bfloat16)
    study = sr.study(model, [rows], data_free=True, effort="fast", progress=False)
    variant = draw_variants(study.structure, study.methods, count=1, step=4, seed=0)[0]
    assert variant.settings or variant.groups
    sample = Batch(args=(rows,), kwargs={})
    network = build_variant(model, variant, has_bias=True, seed=0, sample=sample)
    given: list[torch.Tensor] = []
    network.two.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    assert network(rows).isfinite().all()
    assert network.norm.running_mean.dtype == torch.float32
    assert float(network.norm.running_mean.abs().max()) > 0


def test_mixed_variants_drop_blocks() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(16, 16, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.conv(x).relu()

    model = nn.Sequential(*(Block() for _ in range(8)), nn.Flatten(), nn.Linear(16 * 25, 4)).eval()
    study = sr.study(model, [torch.randn(4, 16, 5, 5)], data_free=True, effort="fast", progress=False)
    assert len(study.structure.channels.blocks) == 8
    drawn = draw_variants(study.structure, study.methods, count=6, step=4, seed=0, mixed=True)
    assert any(variant.dropped for variant in drawn)
    variant = next(variant for variant in drawn if variant.dropped)
    network = build_variant(seams.original_of(study), variant, has_bias=True, seed=0)
    assert isinstance(network.get_submodule(variant.dropped[0]), nn.Identity)


def test_groups_of_a_grouped_convolution_stay_whole_steps_wide() -> None:
    """Kernels compute each group alone: 12 of 16 channels in each of 4 are no whole step, though 48 are."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 64, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(64, 32, 3, padding=1, groups=4), nn.ReLU(), nn.Conv2d(32, 8, 1),
    ).eval()  # fmt: skip
    study = sr.study(model, [torch.randn(2, 4, 6, 6)], methods=("channel_pruning",), progress=False)
    # Inputs of 32 channels in each group and outputs of 16; the last one has 8 in each, no step of 16.
    assert kernel_group_steps(study.structure, 16) == {"0#2": 64, "2": 64}
    assert kernel_group_steps(study.structure, 8) == {"0#2": 32, "2": 32, "4": 32}
    (rounding,) = rounding_steps("auto", study.structure, step=16)
    assert rounding.ranks == 16
    assert rounding.widths == {"0": 16, "0#2": 64, "2": 64, "4": 16}
    (rounding,) = rounding_steps(24, study.structure, step=16)
    assert rounding.widths == {"0": 48, "0#2": 192, "2": 192, "4": 48}
    drawn = draw_variants(study.structure, study.methods, count=12, step=16, seed=0)
    seen = set()
    for variant in drawn:
        built = build_variant(model, variant, has_bias=True, seed=0)
        assert isinstance(built[2], nn.Conv2d)
        conv = built[2]
        assert conv.weight.shape[1] % 16 == 0
        assert conv.out_channels // conv.groups % 16 == 0
        seen.add((conv.groups, conv.in_channels, conv.out_channels))
    assert len(seen) > 2
