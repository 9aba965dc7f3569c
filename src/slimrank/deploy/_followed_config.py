# SPDX-License-Identifier: Apache-2.0
"""A configuration of transformers that follows the widths of a compressed model."""

from collections.abc import Collection, Iterator, Mapping
from itertools import islice, product
from typing import Protocol, Self

import torch
from torch import nn

from slimrank.forward import Batch, eval_mode, named_tensors, run
from slimrank.plan import Plan, has_uniform_widths, stacks_in
from slimrank.records import GroupSpec

# How configurations call the neurons of a layer.
_WIDTHS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "ffn_hidden_size",
    "ffn_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "d_ff",
    "n_inner",
    "hidden_dim",
)
# Heads, and the width of one.
_HEADS = (
    "num_attention_heads",
    "num_key_value_heads",
    "num_heads",
    "n_head",
    "encoder_attention_heads",
    "decoder_attention_heads",
)
_HEAD_WIDTHS = ("head_dim", "d_kv")
# What modules hold that says nothing of what they compute.
_ASIDE = ("training", "name_or_path")
# Configurations that are tried: each builds a model without memory. Two readings of each of six stacks.
_MAX_TRIES = 64

# Of some fields, their new values.
_Changes = tuple[tuple[str, int], ...]


class Config(Protocol):
    """What is used of a configuration of transformers."""

    architectures: list[str]
    dtype: object

    def to_dict(self) -> dict[str, object]:
        """All fields."""
        ...

    @classmethod
    def from_dict(cls, config_dict: dict[str, object]) -> Self:
        """The configuration with these fields."""
        ...

    def to_json_file(self, json_file_path: str, use_diff: bool = True) -> None:
        """Writes all fields, or those that are no defaults."""
        ...


def followed_configs(model: nn.Module, plan: Plan, original: Config) -> Iterator[Config]:
    """Configurations from which the class of a model builds tensors of its names and shapes.

    Args:
        model: the compressed model.
        plan: that it was made by.
        original: configuration of the model before.

    Yields:
        Those found; none where pairs took the place of layers, blocks went, biases are new, widths differ
        from layer to layer, or the configuration has no field for them.
    """
    if len(plan.steps) != 1 or plan.settings or plan.dropped:
        return
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for changes in _changes(plan, original):
        config, shapes = _built(type(model), original, changes)
        if config is not None and shapes == wanted:
            yield config


def why_not_followed(model: nn.Module, plan: Plan, original: Config) -> str:
    """What no configuration says of a compressed model, and what to plan with instead.

    Args:
        model: the compressed model, that no configuration builds.
        plan: that it was made by.
        original: configuration of the model before.

    Returns:
        The first reason that holds.
    """
    if len(plan.steps) > 1:
        return f"it was compressed in {len(plan.steps)} steps; compress the original in one"
    if plan.settings:
        return (
            f"{next(iter(plan.settings))!r} is a pair of factors; plan with methods=('channel_pruning',), "
            "uniform_widths=True and new_bias=False"
        )
    if plan.dropped:
        return f"{next(iter(plan.dropped))!r} is dropped; plan with uniform_widths=True, which drops no block"
    (step,) = plan.steps
    channels = step.structure.channels
    if not has_uniform_widths(plan.groups, channels):
        return "widths differ from layer to layer; plan with uniform_widths=True"
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    new = [
        name for name, spec in step.structure.layers.items() if not spec.has_bias and f"{name}.bias" in wanted
    ]
    if new:
        return f"{new[0]!r} has a new bias; plan with new_bias=False"
    return _why_not_in_fields(model, plan, original)


def is_same_model(
    loaded: nn.Module, model: nn.Module, batch: Batch | None, followed: Collection[tuple[object, object]]
) -> bool:
    """Whether two models have the same modules, with the same values, and compute the same.

    Args:
        loaded: what transformers made of the configuration.
        model: the compressed model.
        batch: that both are run on; None for none.
        followed: old and new value of each field that followed. Modules of the compressed model may still
            hold the old one, where nothing reads it: that the outputs are the same shows it.

    Returns:
        Whether tensors, buffers that are not saved among them, whatever plain values modules hold, and the
        outputs agree.
    """
    modules, others = dict(loaded.named_modules()), dict(model.named_modules())
    if modules.keys() != others.keys() or not _has_same_tensors(loaded, model):
        return False
    stale = followed if batch is not None else ()
    for name, module in modules.items():
        other = others[name]
        values, other_values = _plain_values(module), _plain_values(other)
        # A hook is what no configuration brings.
        if type(module) is not type(other) or other._forward_hooks or other._forward_pre_hooks:
            return False
        if values.keys() != other_values.keys() or any(
            value != other_values[key] and (other_values[key], value) not in stale
            for key, value in values.items()
        ):
            return False
    return batch is None or _has_same_outputs(loaded, model, batch)


def fields_that_differ(original: Config, config: Config) -> set[tuple[object, object]]:
    """Old and new value of each field that has another one.

    Args:
        original: one configuration.
        config: the other, of the same class.

    Returns:
        The pairs of numbers.
    """
    old = original.to_dict()
    return {
        (old.get(name), value)
        for name, value in config.to_dict().items()
        if isinstance(value, int) and value != old.get(name)
    }


def _why_not_in_fields(model: nn.Module, plan: Plan, original: Config) -> str:
    """The first group whose width no reading of its own brings."""
    channels, fields, state = plan.steps[-1].structure.channels, original.to_dict(), model.state_dict()
    for name in (names[0] for names in stacks_in(channels) if names[0] in plan.groups):
        weight = f"{name}.weight"
        built = [
            _built(type(model), original, dict(changes))[1].get(weight)
            for changes in _readings(fields, channels.groups[name], len(plan.groups[name]))
        ]
        if weight in state and tuple(state[weight].shape) not in built:
            return (
                f"its configuration has no field for the width of {name!r}; leave that and those "
                "like it in other layers out with skip="
            )
    return "what its configuration builds is another model, or computes something else"


def _has_same_tensors(loaded: nn.Module, model: nn.Module) -> bool:
    tensors, others = (
        {**found.state_dict(), **dict(found.named_buffers(remove_duplicate=False))}
        for found in (loaded, model)
    )
    return tensors.keys() == others.keys() and all(
        tensor.dtype == others[name].dtype and torch.equal(tensor.cpu(), others[name].cpu())
        for name, tensor in tensors.items()
    )


def _has_same_outputs(loaded: nn.Module, model: nn.Module, batch: Batch) -> bool:
    device = next(model.parameters()).device
    with torch.no_grad(), eval_mode(model):
        found, wanted = (dict(named_tensors(run(network, batch))) for network in (loaded.to(device), model))
    return found.keys() == wanted.keys() and all(
        torch.equal(tensor, wanted[name]) for name, tensor in found.items()
    )


def _plain_values(module: nn.Module) -> dict[str, object]:
    return {
        key: value
        for key, value in vars(module).items()
        if key not in _ASIDE and not key.startswith("_") and isinstance(value, int | float | str | tuple)
    }


def _changes(plan: Plan, original: Config) -> Iterator[Mapping[str, int]]:
    """What may have become of the fields, one reading after the other."""
    channels, fields = plan.steps[-1].structure.channels, original.to_dict()
    readings: dict[tuple[_Changes, ...], None] = {}
    for name, units in plan.groups.items():
        readings[tuple(_readings(fields, channels.groups[name], len(units)))] = None
    for chosen in islice(product(*readings), _MAX_TRIES):
        merged: dict[str, int] = {}
        for changes in chosen:
            merged.update(changes)
        yield merged


def _readings(fields: Mapping[str, object], group: GroupSpec, kept: int) -> Iterator[_Changes]:
    """What a slimmed group may be in a configuration: neurons, heads, or the width of heads."""
    width = group.units * group.unit_width
    for name in _WIDTHS:
        if fields.get(name) == width:
            yield ((name, kept * group.unit_width),)
    hidden = fields.get("n_embd")
    if "n_inner" in fields and fields["n_inner"] is None and isinstance(hidden, int) and width == 4 * hidden:
        yield (("n_inner", kept * group.unit_width),)
    heads = {name: count for name in _HEADS if isinstance(count := fields.get(name), int)}
    whole = {name: count for name, count in heads.items() if count % group.units == 0}
    size = fields.get("hidden_size")
    if whole:
        fewer = [(name, count // group.units * kept) for name, count in whole.items()]
        # Otherwise it would follow from the number of heads.
        if isinstance(size, int) and not any(isinstance(fields.get(name), int) for name in _HEAD_WIDTHS):
            fewer.append(("head_dim", size // next(iter(heads.values()))))
        yield tuple(fewer)
    for name in _HEAD_WIDTHS:
        value = fields.get(name)
        if name in fields and value is None and isinstance(size, int) and heads:
            value = size // next(iter(heads.values()))
        if isinstance(value, int) and value % group.units == 0:
            yield ((name, value // group.units * kept),)


def _built(
    model_class: type[nn.Module], original: Config, changes: Mapping[str, int]
) -> tuple[Config | None, dict[str, tuple[int, ...]]]:
    """The changed configuration, and what its model consists of; None where there is no such model."""
    try:
        config = type(original).from_dict({**original.to_dict(), **changes})
        with torch.device("meta"):
            model = model_class(config)
    except Exception:  # Whatever classes of transformers raise of a configuration that they do not take.
        return None, {}
    return config, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
