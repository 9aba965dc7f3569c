# SPDX-License-Identifier: Apache-2.0
"""Variants of a network: every layer takes another form in each, every group another width."""

from collections.abc import Mapping, Sequence
from math import lcm

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimrank.cost import (
    FORM_ROWS,
    FORMS,
    carries_mean,
    forms_of,
    layer_cost,
    max_rank,
    pair_cost,
    slimmed_spec,
)
from slimrank.forward import Batch, eval_mode, on_cpu, run
from slimrank.methods import empty_replacement
from slimrank.plan import Step, Structure, is_inside, kernel_group_steps, slimmable_groups, step_of
from slimrank.records import PRUNING, Form, GroupSpec, LayerSpec, Method, Setting
from slimrank.surgery import dense_weight, drop_blocks, quiet_copy, replace_module, slim

# Share of the units that a group keeps at least in a variant: narrower ones are rare in plans.
_LEAST_WIDTH = 0.25
# Share of the groups that stay whole in each variant: plans leave many as they are.
_WHOLE_GROUPS = 0.3
# Steps that hardware has, from the largest on.
_STEPS = (16, 8, 4)
# Ranks or widths that tell what the time of a layer grows with.
_SEVERAL = 2
# Share of the blocks that are dropped where a variant drops any.
_DROPPED = 0.15


def untouched(structure: Structure) -> Step:
    """The step of a plan that does nothing."""
    return Step(structure=structure, layers={})


def draw_variants(
    structure: Structure, methods: Sequence[Method], *, count: int, step: int, seed: int, mixed: bool = False
) -> tuple[Step, ...]:
    """Draws variants that together show each layer in all its forms.

    Args:
        structure: of the model.
        methods: that plans may use.
        count: of variants.
        step: ranks, and outputs of the first producers of groups, are multiples of this; where kernels
            compute the groups of a convolution one by one, those of each group are.
        seed: of the draw.
        mixed: drop some blocks as well.

    Returns:
        The variants, as steps of a plan. Ranks cost fewer MACs than their layer.
    """
    generator = np.random.default_rng(seed)
    groups = slimmable_groups(structure.channels) if PRUNING in methods else {}
    whole_steps = kernel_group_steps(structure, step)
    widths = {
        name: _widths(generator, group, count, whole_steps.get(name, step))
        for name, group in groups.items()
        if _unit_steps(group, whole_steps.get(name, step))
    }
    choices: dict[str, list[tuple[Method, Form] | None]] = {}
    for name, forms in _forms_by_layer(structure, methods).items():
        # Each in turn, from another one on for each layer: in every variant some layers stay whole.
        turn = [None, None, *forms]
        start = int(generator.integers(len(turn)))
        chosen = [turn[(start + variant) % len(turn)] for variant in range(count)]
        choices[name] = [chosen[index] for index in generator.permutation(count)]
    ranks = {name: _strata(generator, count) for name in choices}
    steps = []
    for variant in range(count):
        kept = {name: tuple(range(widths[name][variant])) for name in widths}
        kept = {name: units for name, units in kept.items() if len(units) < groups[name].units}
        dropped = _dropped(generator, structure) if mixed else ()
        settings = {}
        for name, chosen in choices.items():
            form = chosen[variant]
            if form is None or is_inside(name, dropped):
                continue
            spec = slimmed_spec(structure.layers[name], structure.channels, kept)
            setting = _setting_at(spec, form, float(ranks[name][variant]), step)
            if setting is not None:
                settings[name] = setting
        kept = {name: units for name, units in kept.items() if not _is_gone(structure, name, dropped)}
        steps.append(step_of(structure, settings, kept, dropped, where="variant"))
    return tuple(steps)


def build_variant(
    model: nn.Module, variant: Step, *, has_bias: bool, seed: int, sample: Batch | None = None
) -> nn.Module:
    """A network with the shapes of a variant, for its times: pairs have random weights.

    Args:
        model: that the variant is of; it is not changed.
        variant: what is done to it.
        has_bias: whether the last factors of all pairs have a bias.
        seed: of the weights.
        sample: real inputs that batch norms are settled on; None leaves their statistics as they are, which
            is enough where times do not depend on values.

    Returns:
        A private copy. What a pair makes is about as large as what its layer made, so that no activation
        runs out of its range.

    Raises:
        BatchesError: the variant refuses the sample.
    """
    structure = variant.structure
    generator = torch.Generator().manual_seed(seed)
    copy = quiet_copy(model).cpu()
    slim(copy, structure.channels, variant.groups)
    layers = dict(copy.named_modules())
    for name, setting in variant.settings.items():
        spec = slimmed_spec(structure.layers[name], structure.channels, variant.groups)
        bias = carries_mean(has_bias=spec.has_bias, plan_has_bias=has_bias)
        weight = dense_weight(layers[name])
        pair = empty_replacement(spec, setting, has_bias=bias, layer=layers[name]).to_empty(device="cpu")
        size = float(weight.detach().double().norm()) or 1.0
        _fill(pair, size, setting.rank, spec, next(layers[name].parameters()).dtype, generator)
        replace_module(copy, name, pair.eval())
    drop_blocks(copy, variant.dropped, structure.channels.blocks)
    copy.requires_grad_(requires_grad=False)
    if sample is not None and (variant.settings or variant.groups or variant.dropped):
        _settle_norms(copy, on_cpu(sample))
    return copy


def _settle_norms(model: nn.Module, sample: Batch) -> None:
    """Makes the outputs of batch norms what they are in a trained network, by the statistics of a batch.

    Random weights and missing channels leave activations that shrink from layer to layer, or are the same
    for all inputs. Runtimes choose the kernels of int8 layers by the ranges of such values: depthwise
    convolutions of OpenVINO took nearly twice as long in variants as in networks that were really compressed.
    """

    def settle(norm: _BatchNorm, args: tuple[Tensor, ...], kwargs: Mapping[str, Tensor]) -> None:
        (given,) = (*args, *kwargs.values())
        values = given.float().transpose(0, 1).flatten(1)
        # One value says nothing of how they vary.
        if values.shape[1] > 1:
            variance, mean = torch.var_mean(values, dim=1)
            for name, found in (("running_mean", mean), ("running_var", variance)):
                setattr(norm, name, found.to(getattr(norm, name).dtype))

    norms = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    handles = [norm.register_forward_pre_hook(settle, with_kwargs=True) for norm in norms]
    try:
        if norms:
            with eval_mode(model), torch.no_grad():
                run(model, sample)
    finally:
        for handle in handles:
            handle.remove()


def has_timed_form(method: Method) -> bool:
    """Whether tables of times know any form of a method that splits layers."""
    return any(FORM_ROWS[form].is_timed for form in FORMS[method])


def useful_ranks(spec: LayerSpec, form: Form, step: int) -> range:
    """The ranks on the grid at which a pair costs fewer MACs than its layer.

    Args:
        spec: the layer, slimmed where its groups are.
        form: how the pair is split.
        step: ranks are multiples of this.

    Returns:
        Ascending; empty where there is none.
    """
    per_rank = pair_cost(spec, form, 1, has_bias=False).macs
    whole = layer_cost(spec).macs
    top = max_rank(spec, form)
    if per_rank:
        top = min(top, (whole - 1) // per_rank)
    return range(step, top + 1, step)


def without_useful_rank(structure: Structure, methods: Sequence[Method], step: int) -> list[str]:
    """Grouped convolutions that pairs could replace, but none whose rank is on the grid.

    Args:
        structure: of the model.
        methods: that plans may use.
        step: ranks are multiples of this.

    Returns:
        Names of layers.
    """
    return [
        name
        for name, forms in _forms_by_layer(structure, methods).items()
        if structure.layers[name].groups > 1
        and not any(useful_ranks(structure.layers[name], form, step) for _, form in forms)
    ]


def _forms_by_layer(structure: Structure, methods: Sequence[Method]) -> dict[str, list[tuple[Method, Form]]]:
    """Of each layer that pairs can replace, the forms."""
    found = {
        name: [
            (method, form)
            for method in FORMS
            if method in methods and method in spec.methods
            for form in forms_of(spec, method)
            if FORM_ROWS[form].is_timed
        ]
        for name, spec in structure.layers.items()
    }
    return {name: forms for name, forms in found.items() if forms}


def shared_step(structure: Structure, methods: Sequence[Method]) -> int:
    """A step to draw variants with before that of the hardware is known.

    Multiples of 16 are edges of the stairs of all hardware. Where most layers and groups are too narrow to
    take several of them, variants would show too little, and the next smaller step is taken.

    Args:
        structure: of the model.
        methods: that plans may use.

    Returns:
        16, 8 or 4.
    """
    groups = slimmable_groups(structure.channels).values() if PRUNING in methods else ()

    def choices(step: int) -> int:
        """How many layers and groups have several."""
        pairs = [
            any(
                len(useful_ranks(spec, form, step)) >= _SEVERAL
                for method in FORMS
                if method in methods and method in spec.methods
                for form in forms_of(spec, method)
                if FORM_ROWS[form].is_timed
            )
            for spec in structure.layers.values()
        ]
        return sum(pairs) + sum(len(_unit_steps(group, step)) >= _SEVERAL for group in groups)

    *coarser, finest = _STEPS
    return next((step for step in coarser if 2 * choices(step) >= choices(finest) > 0), finest)


def _setting_at(spec: LayerSpec, form: tuple[Method, Form], share: float, step: int) -> Setting | None:
    """The setting of a form at a share of its useful ranks; None where there is no rank."""
    method, name = form
    ranks = useful_ranks(spec, name, step)
    if not ranks:
        return None
    return Setting(method=method, form=name, rank=ranks[int(share * len(ranks))])


def _strata(generator: np.random.Generator, count: int) -> np.ndarray:
    """Shares in [0, 1), one in each of as many equal parts, in random order."""
    shares: np.ndarray = (generator.permutation(count) + generator.random(count)) / count
    return shares


def _unit_steps(group: GroupSpec, step: int) -> list[int]:
    """Numbers of units, fewer than all, at which the first producer's outputs are a multiple of the step."""
    least = lcm(step, group.unit_width) // group.unit_width
    return [
        units for units in range(least, group.units, least) if units >= _LEAST_WIDTH * group.units - least
    ]


def _widths(generator: np.random.Generator, group: GroupSpec, count: int, step: int) -> list[int]:
    """Units that a group keeps in each variant."""
    allowed = _unit_steps(group, step)
    widths = []
    for share in _strata(generator, count):
        scaled = (share - _WHOLE_GROUPS) / (1 - _WHOLE_GROUPS)
        widths.append(group.units if scaled < 0 else allowed[int(scaled * len(allowed))])
    return widths


def _dropped(generator: np.random.Generator, structure: Structure) -> tuple[str, ...]:
    """Some blocks, none inside another one."""
    found: list[str] = []
    for name in structure.channels.blocks:
        is_apart = not is_inside(name, found) and not any(is_inside(other, (name,)) for other in found)
        if is_apart and generator.random() < _DROPPED:
            found.append(name)
    return tuple(found)


def _is_gone(structure: Structure, group: str, dropped: Sequence[str]) -> bool:
    """Whether all that a group touches is inside dropped blocks."""
    touched = [
        name
        for name, tensor in structure.channels.tensors.items()
        if any(axis.group == group for axis in tensor.axes)
    ]
    return all(is_inside(name, dropped) for name in touched)


def _fill(
    pair: nn.Module, size: float, rank: int, spec: LayerSpec, dtype: torch.dtype, generator: torch.Generator
) -> None:
    """Gives a pair random weights whose product is about as large as the layer's (in place)."""
    first, *_, last = pair.children()
    n_inputs = spec.weight_shape[1] * int(np.prod(spec.kernel, dtype=np.int64) or 1)
    scales: Mapping[int, float] = {
        id(first): n_inputs**-0.5,
        id(last): size / (spec.n_outputs * rank) ** 0.5,
    }
    for module in (first, last):
        for name, parameter in list(module.named_parameters()):
            # A bias of zeros: the network's own norms and biases stay.
            scale = scales[id(module)] if name.startswith("weight") else 0.0
            values = scale * torch.randn(parameter.shape, generator=generator)
            setattr(module, name, nn.Parameter(values.to(dtype), requires_grad=False))
