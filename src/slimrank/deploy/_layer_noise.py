# SPDX-License-Identifier: Apache-2.0
"""What rounding one layer to int8 costs, in torch: which layers hurt."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from slimrank.deploy._judge import Judge, decibels, signal_and_noise
from slimrank.deploy._program import Program
from slimrank.deploy._runtime import Bound
from slimrank.forward import (
    Batch,
    fixed_seed,
    map_tensors,
    named_tensors,
    plain_attention,
    run,
    watch_modules,
)

# Steps of a weight to either side of zero, and of a value from its smallest to its largest.
_WEIGHT_STEPS, _VALUE_STEPS = 127, 255


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNoise:
    """One layer in int8, everything else in float.

    Attributes:
        name: of the layer.
        divergence: per sample, that it adds; of whole numbers the share that differs.
        noise_db: signal over noise at its output, in decibels.
    """

    name: str
    divergence: float
    noise_db: float


def noisiest_layers(
    program: Program, names: Sequence[str], batches: Sequence[Batch], judge: Judge, *, has_values: bool
) -> list[LayerNoise]:
    """Layers by what rounding each of them alone adds to the divergence, the worst first.

    Weights are rounded per output channel, values per tensor, as runtimes do it.

    Args:
        program: captured; its model runs, and is not changed.
        names: of layers; those that are no modules, or hold no matrix, are left out.
        batches: that ranges of values are read from.
        judge: on some samples.
        has_values: values are rounded, too, and not only weights.

    Returns:
        The layers.
    """
    model = program.model.model
    modules = dict(model.named_modules())
    known = [name for name in names if name in modules and any(_matrices(modules[name]))]
    ranges = _ranges(model, known, batches) if has_values else {}
    found = [_noise_of(program, name, ranges.get(name), judge) for name in known]
    return sorted(found, key=lambda layer: layer.divergence, reverse=True)


def _noise_of(program: Program, name: str, values: tuple[float, float] | None, judge: Judge) -> LayerNoise:
    model = program.model.model
    layer = model.get_submodule(name)
    weights = {key: _round_weight(weight) for key, weight in _matrices(layer)}
    signal = noise = 0.0
    is_inside = False

    def rounded(value: object) -> object:
        return map_tensors(value, lambda tensor: _round_values(tensor, *values)) if values else value

    def leave(name: str, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> object:
        nonlocal signal, noise, is_inside
        if is_inside:
            return None
        is_inside = True
        try:
            found: object = functional_call(
                layer,
                weights,
                tuple(rounded(value) for value in args),
                {key: rounded(value) for key, value in kwargs.items()},
            )
        finally:
            is_inside = False
        pairs = zip(named_tensors(output), named_tensors(found), strict=True)
        for (_, before), (_, after) in pairs:
            powers = signal_and_noise(before, after)
            signal, noise = signal + powers[0], noise + powers[1]
        return found

    def bind(batch: Batch) -> Bound:
        def bound() -> Sequence[Tensor]:
            watched = watch_modules([(name, layer)], leave=leave)
            with torch.no_grad(), plain_attention(), fixed_seed(model), watched:
                result = run(model, batch)
            return list(program.model.output_tensors(result).values())

        return bound

    divergence = judge.judge(bind).divergence
    return LayerNoise(name=name, divergence=divergence, noise_db=decibels(signal, noise))


def _matrices(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Weights that are multiplied with values: those with more than one dimension."""
    for key, weight in layer.named_parameters():
        if weight.ndim > 1 and weight.is_floating_point():
            yield key, weight.detach()


def _ranges(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> dict[str, tuple[float, float]]:
    """Smallest and largest value that comes into each layer, zero among them; masks left out."""
    found: dict[str, tuple[float, float]] = {}

    def enter(name: str, args: tuple[object, ...], kwargs: Mapping[str, object]) -> None:
        for _, tensor in named_tensors((*args, *kwargs.values())):
            if tensor.is_floating_point() and tensor.numel() and not _is_mask(tensor):
                low, high = found.get(name, (0.0, 0.0))
                found[name] = min(low, float(tensor.min())), max(high, float(tensor.max()))

    watched = watch_modules([(name, model.get_submodule(name)) for name in names], enter=enter)
    with torch.no_grad(), plain_attention(), fixed_seed(model), watched:
        for batch in batches:
            run(model, batch)
    return found


def _is_mask(tensor: Tensor) -> bool:
    """Whether it holds values that make others count for nothing, as -inf in the mask of an attention."""
    return not bool((tensor.abs() < torch.finfo(tensor.dtype).max / 2).all())


def _round_weight(weight: Tensor) -> Tensor:
    """A weight as int8 holds it, one scale for each output channel."""
    largest = weight.flatten(1).abs().amax(1).reshape(-1, *[1] * (weight.ndim - 1))
    scale = largest.clamp_min(torch.finfo(weight.dtype).tiny) / _WEIGHT_STEPS
    return (weight / scale).round() * scale


def _round_values(tensor: Tensor, low: float, high: float) -> Tensor:
    """Values as unsigned int8 holds them between two bounds; what is no fraction, or a mask, as it is."""
    if not tensor.is_floating_point() or high <= low or _is_mask(tensor):
        return tensor
    scale = (high - low) / _VALUE_STEPS
    zero = round(-low / scale)
    return ((tensor / scale).round() + zero).clamp(0, _VALUE_STEPS).sub(zero) * scale
