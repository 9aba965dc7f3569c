# SPDX-License-Identifier: Apache-2.0
"""From a model and one batch to its layers: shapes, calls, costs, and what cannot be touched."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from slimrank._errors import BatchesError, ModelError, NonFiniteError, OutputError
from slimrank.capture._count import count_by_module
from slimrank.capture._reasons import PLAIN_DTYPES, reason_for
from slimrank.capture._swap_trial import trial_swap
from slimrank.capture._weight_uses import read_weight_uses
from slimrank.cost import forms_of, layer_cost, max_rank, pair_cost, pair_has_bias
from slimrank.forward import (
    Batch,
    OutputChoice,
    first_input,
    named_tensors,
    pick_outputs,
    run,
    take_samples,
    watch_modules,
)
from slimrank.records import Call, Cost, LayerKind, LayerSpec, Method, Note

# Layers that methods know; a subclass counts as its base as long as it keeps the base's forward.
_BASES: tuple[tuple[LayerKind, type[nn.Module]], ...] = (
    ("linear", nn.Linear),
    ("conv1d", nn.Conv1d),
    ("conv2d", nn.Conv2d),
    ("conv3d", nn.Conv3d),
    ("recurrent", nn.LSTM),
    ("recurrent", nn.GRU),
    ("recurrent", nn.RNN),
)
# Samples that are run together, of which the first and the last are also run alone: three, so that these two
# are no neighbours.
_SAMPLES_TO_COMPARE = 3
# Share of the largest value by which an output of a sample alone and in a batch may differ: kernels sum in
# another order for another batch size. Less would refuse to cut sound batches, more would miss weak mixing.
_SAME = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Captured:
    """What was read from a model.

    Attributes:
        layers: every module that holds a matrix or kernel, called ones first in execution order.
        before: counted cost of the whole model for one sample.
        sample: the sample that was used.
        can_split: whether batches can be cut into samples; if not, a batch counts as one sample.
        output_elements: numbers that all layer outputs of one sample hold, for sizing micro-batches.
        notes: what the user should know.
    """

    layers: tuple[LayerSpec, ...]
    before: Cost
    sample: Batch
    can_split: bool
    output_elements: int
    notes: tuple[Note, ...]


def capture(
    model: nn.Module,
    batch: Batch,
    *,
    methods: Sequence[Method],
    skip: Sequence[str],
    has_bias: bool,
    outputs: OutputChoice = None,
) -> Captured:
    """Reads the layers of a model from a few forwards.

    Args:
        model: a private copy in eval mode.
        batch: the first batch.
        methods: methods to offer.
        skip: layer-name globs that the caller wants left alone.
        has_bias: whether pairs carry a bias even where the layer has none.
        outputs: which outputs matter, to see whether samples are independent.

    Returns:
        Layers, costs and notes.

    Raises:
        BatchesError: the model refuses the batch.
        ModelError: the model has no compressible layer.
        NonFiniteError: a weight or an output holds nan or inf.
    """
    check_weights(model)
    can_split = _can_split(model, batch, outputs)
    sample = take_samples(batch, [0]) if can_split else batch
    notes: list[Note] = []
    if not can_split:
        notes.append(
            Note(
                where="capture",
                text="samples run alone do not give what they give in a batch, so one batch counts as one "
                "sample; where outputs have the samples in another dimension than the first, pass "
                "outputs=lambda out: out.transpose(0, 1) or the like",
            )
        )
    calls, order = _watch_calls(model, sample)
    before, macs_by_module, uncounted = count_by_module(model, sample)
    if uncounted:
        notes.append(
            Note(
                where="capture",
                text=f"MACs leave out {', '.join(uncounted)}: no formula is known; register one with "
                "torch.utils.flop_counter.register_flop_formula",
            )
        )
    # The exported graph only tells who reads a weight whose layer is never called; an export is slow.
    is_asked = any(name not in calls and _holds_weight(module) for name, module in model.named_modules())
    uses, problem = read_weight_uses(model, sample) if is_asked else ({}, None)
    if problem is not None:
        notes.append(
            Note(where="capture", text=f"torch.export failed ({problem}); layers were read from hooks alone")
        )
    owners = Counter(
        id(parameter)
        for module in model.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    layers = [
        _describe(module, name, calls.get(name, []), owners, macs_by_module, skip, uses)
        for name, module in model.named_modules()
        if _holds_weight(module)
    ]
    # Layers that are never called come last.
    layers.sort(key=lambda spec: order.get(spec.name, len(order)))
    layers = [_with_methods(spec, methods, has_bias) for spec in layers]
    swappable = [spec.name for spec in layers if spec.reason is None]
    refused = trial_swap(model, sample, swappable)
    layers = [
        replace(spec, methods=(), reason=refused[spec.name]) if spec.name in refused else spec
        for spec in layers
    ]
    return Captured(
        layers=tuple(layers),
        before=before,
        sample=sample,
        can_split=can_split,
        output_elements=sum(_elements(call.output_shape) for name in calls for call in calls[name]),
        notes=tuple(notes),
    )


def describe_layers(model: nn.Module) -> tuple[LayerSpec, ...]:
    """Names and geometry of the layers, without running the model: enough to compare structures.

    Args:
        model: any module.

    Returns:
        Every module that holds a matrix or kernel, in the order of ``named_modules()``, without calls or
        costs.
    """
    return tuple(
        _describe(module, name, (), Counter(), {}, (), {})
        for name, module in model.named_modules()
        if _holds_weight(module)
    )


def check_compressible(layers: Sequence[LayerSpec], model: nn.Module) -> None:
    """Refuses a model in which nothing can be done.

    Raises:
        ModelError: no layer has a method; the message gives the reasons.
    """
    if any(spec.methods for spec in layers):
        return
    reasons = Counter(spec.reason for spec in layers)
    listed = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(4))
    raise ModelError(
        f"{type(model).__name__} has no compressible layer ({listed or 'it holds no weight matrix'}); "
        "slimrank shrinks nn.Linear, ungrouped nn.Conv1d, Conv2d and Conv3d, and nn.LSTM, GRU and RNN"
    )


def _elements(shape: tuple[int, ...]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _holds_weight(module: nn.Module) -> bool:
    if any(isinstance(module, base) for _, base in _BASES) or is_parametrized(module):
        return True
    return any(p is not None and p.ndim >= 2 for p in module._parameters.values())


def check_weights(model: nn.Module) -> None:
    """Refuses weights that are not finite.

    Raises:
        NonFiniteError: a parameter holds nan or inf.
    """
    for name, parameter in model.named_parameters():
        if parameter.dtype in PLAIN_DTYPES and not parameter.is_meta and not parameter.isfinite().all():
            raise NonFiniteError(f"{name} holds nan or inf; load sound weights first")


def _watch_calls(model: nn.Module, sample: Batch) -> tuple[Mapping[str, list[Call]], Mapping[str, int]]:
    calls: defaultdict[str, list[Call]] = defaultdict(list)
    order: dict[str, int] = {}

    def leave(name: str, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> None:
        x = next((t for _, t in named_tensors(args)), None)
        if x is None:
            x = next((t for _, t in named_tensors(kwargs)), None)
        y = next((t for _, t in named_tensors(output)), None)
        # Rows of packed sequences are no dimension of a shape.
        is_packed = isinstance(first_input(args, kwargs), PackedSequence)
        calls[name].append(
            Call(
                input_shape=() if x is None or is_packed else tuple(x.shape),
                output_shape=() if y is None else tuple(y.shape),
            )
        )
        order.setdefault(name, len(order))

    layers = [(name, module) for name, module in model.named_modules() if _holds_weight(module)]
    with watch_modules(layers, leave=leave), torch.no_grad():
        result = run(model, sample)
    for name, tensor in named_tensors(result):
        if tensor.is_floating_point() and tensor.numel() and tensor.isnan().any():
            raise NonFiniteError(
                f"output {name or 'of the model'} holds nan for the first sample; check weights and data"
            )
    return calls, order


def _can_split(model: nn.Module, batch: Batch, outputs: OutputChoice) -> bool:
    """Whether the first samples, run alone, give what they give in a batch."""
    n_samples = batch.n_samples
    if n_samples == 1:
        return True
    count = min(n_samples, _SAMPLES_TO_COMPARE)
    several = take_samples(batch, list(range(count)))
    # The last one too: in a causal net with time first, step 0 does not see the others.
    return all(_same_alone(model, several, index, outputs) for index in (0, count - 1))


def _same_alone(model: nn.Module, several: Batch, index: int, outputs: OutputChoice) -> bool:
    with torch.no_grad():
        try:
            together = _compared(run(model, several), outputs)
            alone = _compared(run(model, take_samples(several, [index])), outputs)
        except BatchesError:
            # The model may accept whole batches only; if it accepts none, the watched forward reports it.
            return False
    if len(together) != len(alone):
        return False
    for in_batch, alone_output in zip(together, alone, strict=True):
        if in_batch.shape[1:] != alone_output.shape[1:] or alone_output.shape[:1] != (1,):
            return False
        # One row for any number of samples (a shared embedding) must not depend on who is in the batch.
        same_sample = in_batch if in_batch.shape == alone_output.shape else in_batch[index : index + 1]
        if not alone_output.numel():
            continue
        difference = (same_sample.double() - alone_output.double()).abs().max()
        rounding = torch.finfo(alone_output.dtype).eps if alone_output.is_floating_point() else 0.0
        if difference > max(_SAME, 4 * rounding) * (alone_output.double().abs().max() + 1e-6):
            return False
    return True


def _compared(result: object, outputs: OutputChoice) -> list[Tensor]:
    """The outputs that matter; all tensors where these cannot be picked (a later step raises the error)."""
    try:
        return list(pick_outputs(result, outputs).values())
    except OutputError:
        return [tensor for _, tensor in named_tensors(result) if tensor.ndim]


def _describe(
    module: nn.Module,
    name: str,
    calls: Sequence[Call],
    owners: Counter[int],
    macs_by_module: Mapping[str, int],
    skip: Sequence[str],
    uses: Mapping[str, str],
) -> LayerSpec:
    parameters = [p for p in module._parameters.values() if p is not None]
    kind, base = next(((k, b) for k, b in _BASES if isinstance(module, b)), ("other", nn.Module))
    if isinstance(module, nn.RNNBase) and _has_own_parameters(module):
        kind = "other"
    weight = module._parameters.get("weight_ih_l0" if kind == "recurrent" else "weight")
    weight = None if kind == "other" else weight
    reason = reason_for(module, name, kind, base, calls, owners, skip, uses)
    if weight is None:
        largest = max(parameters, key=lambda p: p.numel(), default=None)
        return LayerSpec(
            name=name,
            kind="other",
            class_name=type(module).__name__,
            weight_shape=() if largest is None else tuple(largest.shape),
            has_bias="bias" in module._parameters and module._parameters["bias"] is not None,
            dtype="" if largest is None else str(largest.dtype).removeprefix("torch."),
            itemsize=0 if largest is None else largest.element_size(),
            calls=tuple(calls),
            macs=_own_macs(module, name, macs_by_module),
            params=sum(p.numel() for p in parameters),
            reason=reason,
        )
    spec = LayerSpec(
        name=name,
        kind=kind,
        class_name=type(module).__name__,
        weight_shape=(len(weight) * _n_directions(module), *weight.shape[1:]),
        has_bias=module._parameters.get("bias_ih_l0" if kind == "recurrent" else "bias") is not None,
        dtype=str(weight.dtype).removeprefix("torch."),
        itemsize=weight.element_size(),
        calls=tuple(calls),
        reason=reason,
    )
    spec = _with_geometry(spec, module)
    cost = layer_cost(spec)
    return replace(spec, macs=cost.macs, params=cost.params)


def _n_directions(module: nn.Module) -> int:
    """In how many directions a layer reads its inputs, with a matrix for each."""
    return 2 if isinstance(module, nn.RNNBase) and module.bidirectional else 1


def _has_own_parameters(module: nn.RNNBase) -> bool:
    """Whether a recurrent layer lacks its input matrix, or computes it from others."""
    known = {name for names in module._all_weights for name in names}
    return not known.issuperset(module._parameters) or module._parameters.get("weight_ih_l0") is None


def _own_macs(module: nn.Module, name: str, macs_by_module: Mapping[str, int]) -> int:
    """MACs of a module without those of its children."""
    prefix = f"{name}." if name else ""
    children = sum(macs_by_module.get(prefix + key, 0) for key, _ in module.named_children())
    return max(macs_by_module.get(name, 0) - children, 0)


def _with_geometry(spec: LayerSpec, module: nn.Module) -> LayerSpec:
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return spec
    padding: tuple[int, ...] | Literal["same", "valid"]
    if isinstance(module.padding, str):
        padding = "same" if module.padding == "same" else "valid"
    else:
        padding = tuple(module.padding)
    return replace(
        spec,
        stride=tuple(module.stride),
        dilation=tuple(module.dilation),
        padding=padding,
        padding_mode=module.padding_mode,
        groups=module.groups,
    )


def _with_methods(spec: LayerSpec, methods: Sequence[Method], has_bias: bool) -> LayerSpec:
    if spec.reason is not None:
        return spec
    cost = layer_cost(spec)

    def gains(method: Method) -> bool:
        for form in forms_of(spec, method):
            pair = pair_cost(spec, form, 1, has_bias=pair_has_bias(spec, plan_has_bias=has_bias))
            if max_rank(spec, form) >= 1 and (pair.macs < cost.macs or pair.params < cost.params):
                return True
        return False

    applying = tuple(method for method in methods if gains(method))
    if applying:
        return replace(spec, methods=applying)
    offered = any(forms_of(spec, method) for method in methods)
    reason = (
        "too small to gain: even rank 1 costs as much" if offered else f"none of {', '.join(methods)} applies"
    )
    return replace(spec, reason=reason)
