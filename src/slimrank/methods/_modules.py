# SPDX-License-Identifier: Apache-2.0
"""What a replacement looks like: the container of its modules, their names, and their tensors on disk.

No other file knows how many modules a replacement has, what they are called, or which has the bias.
"""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from slimrank.methods._recurrent import behind_matrix, set_inputs
from slimrank.methods._table import Factors, layer_functions
from slimrank.methods._target import Target
from slimrank.records import LayerSpec, Setting


def fit_factors(
    spec: LayerSpec, setting: Setting, target: Target, *, alternations: int, start: Factors | None = None
) -> Factors:
    """Factors of one setting.

    Args:
        spec: the layer.
        setting: what takes its place.
        target: what to reproduce; it remembers its decompositions.
        alternations: refinement rounds at most, where there is no closed solution.
        start: factors of this setting for a similar target, to begin with where there is no closed solution;
            None begins with a decomposition.

    Returns:
        The factors.
    """
    fit = layer_functions(setting.method).fit
    return fit(spec, setting, target, alternations=alternations, start=start)


def build_modules(
    spec: LayerSpec, layer: nn.Module, factors: Factors, bias: Tensor | None
) -> tuple[nn.Module, ...]:
    """The modules that replace a layer.

    Args:
        spec: its geometry.
        layer: the original; dtype, device, mode and requires_grad are taken from it.
        factors: values of the modules.
        bias: (O,) of the last module; None for none.

    Returns:
        Ordinary torch modules, without bias in any but the last.
    """
    setting = factors.setting
    modules = layer_functions(setting.method).modules(spec, setting, has_bias=bias is not None)
    reference = _weight_tensor(layer)
    if spec.is_recurrent:
        last = behind_matrix(layer, setting.rank)
        set_inputs(last, factors.tensors[-1].reshape(_weight_tensor(modules[-1]).shape), bias)
        modules, values = (*modules[:-1], last), factors.tensors[:-1]
    else:
        values = factors.tensors
    for module, numbers in zip(modules, values, strict=False):
        module.weight = nn.Parameter(
            numbers.reshape(_weight_tensor(module).shape).to(device=reference.device, dtype=reference.dtype),
            requires_grad=reference.requires_grad,
        )
        module.train(layer.training)
    if bias is not None and not spec.is_recurrent:
        # A new bias is like the weight; an old one may have a dtype of its own.
        model_bias = layer.bias if isinstance(layer.bias, Tensor) else reference
        modules[-1].bias = nn.Parameter(
            bias.to(device=reference.device, dtype=model_bias.dtype, copy=True),
            requires_grad=model_bias.requires_grad,
        )
    return modules


def build_replacement(
    spec: LayerSpec, layer: nn.Module, factors: Factors, bias: Tensor | None
) -> nn.Sequential:
    """What takes the place of a layer in a model.

    Args:
        spec: its geometry.
        layer: the original.
        factors: values of the modules.
        bias: (O,) of the last module; None for none.

    Returns:
        The modules of ``build_modules`` in a container.
    """
    return nn.Sequential(*build_modules(spec, layer, factors, bias))


def empty_replacement(
    spec: LayerSpec, setting: Setting, *, has_bias: bool, layer: nn.Module | None = None
) -> nn.Sequential:
    """What takes the place of a layer in a model, without values.

    Args:
        spec: the layer to replace.
        setting: what takes its place.
        has_bias: whether the last module has a bias.
        layer: its module; needed where it is recurrent, since a replacement keeps the rest of it.

    Returns:
        Modules in a container, their parameters on the meta device.
    """
    modules = layer_functions(setting.method).modules(spec, setting, has_bias=has_bias)
    if spec.is_recurrent:
        if layer is None:
            raise TypeError(f"{spec.name} is recurrent: what replaces it is made of the layer itself")
        modules = (*modules[:-1], behind_matrix(layer, setting.rank).to(device="meta"))
    return nn.Sequential(*modules)


def open_container(layer: nn.Module) -> nn.Sequential:
    """A container that still holds the layer itself; ``fill_container`` puts the modules there later.

    It can take the place of the layer before a forward starts, which then finds its new content.
    """
    return nn.Sequential(layer)


def fill_container(
    container: nn.Module, spec: LayerSpec, layer: nn.Module, factors: Factors, bias: Tensor | None
) -> None:
    """Puts the modules of a replacement into the container that still holds the layer (in place).

    Args:
        container: what ``open_container`` returned.
        spec: geometry of the layer.
        layer: the original.
        factors: values of the modules.
        bias: (O,) of the last module; None for none.
    """
    if not isinstance(container, nn.Sequential):
        raise TypeError(f"{spec.name} is a {type(container).__name__}, not the container that was put there")
    first, *others = build_modules(spec, layer, factors, bias)
    container[0] = first
    for module in others:
        container.append(module)
    container.train(layer.training)


def is_replacement(
    modules: Mapping[str, nn.Module],
    spec: LayerSpec,
    setting: Setting,
    *,
    replaced: Collection[str] = (),
) -> bool:
    """Whether a model holds the replacement of a layer, as far as sizes between the factors tell.

    Args:
        modules: of the model, by dotted name.
        spec: the layer that was replaced.
        setting: what should be there.
        replaced: layers that were replaced at any time: factors among them are not checked.

    Returns:
        False where a factor is missing, or has another number of outputs.
    """
    *inner, _ = layer_functions(setting.method).modules(spec, setting, has_bias=False)
    for index, factor in enumerate(inner):
        name = _factor_name(spec.name, index)
        weight = getattr(modules.get(name), "weight", None)
        fits = isinstance(weight, Tensor) and len(weight) == len(_weight_tensor(factor))
        if name not in replaced and not fits:
            return False
    return True


def is_replaced_in(tensors: Collection[str], name: str) -> bool:
    """Whether a state dict holds a replacement of a layer.

    Args:
        tensors: names in the state dict.
        name: of the layer.

    Returns:
        True where the state dict holds a first factor of that layer.
    """
    return f"{_factor_name(name, 0)}.weight" in tensors


def has_bias_in(tensors: Collection[str], name: str, setting: Setting) -> bool | None:
    """Whether the replacement of a layer has a bias, by a state dict.

    Args:
        tensors: names in the state dict.
        name: of the layer.
        setting: what took its place.

    Returns:
        None where the factor that has the bias, or none, was replaced itself by a later step.
    """
    last = _factor_name(name, len(layer_functions(setting.method).factor_names) - 1)
    if is_replaced_in(tensors, last):
        return None
    return f"{last}.bias" in tensors or f"{last}.bias_ih_l0" in tensors


def factors_to_tensors(factors: Factors) -> dict[str, Tensor]:
    """Tensors of factors by their names in a journal."""
    names = layer_functions(factors.setting.method).factor_names
    return dict(zip(names, factors.tensors, strict=True))


def factors_from_tensors(setting: Setting, tensors: Mapping[str, Tensor]) -> Factors:
    """Factors from the tensors that a journal holds; other names are ignored."""
    functions = layer_functions(setting.method)
    return functions.factors_of(setting, [tensors[name] for name in functions.factor_names])


def factors_on(factors: Factors, device: torch.device) -> Factors:
    """The same factors on a device."""
    tensors = [tensor.to(device) for tensor in factors.tensors]
    return layer_functions(factors.setting.method).factors_of(factors.setting, tensors)


def _factor_name(name: str, index: int) -> str:
    """Dotted name of a factor in a model: containers count their modules."""
    return f"{name}.{index}"


def _weight_tensor(module: nn.Module) -> Tensor:
    weight = module.weight_ih_l0 if isinstance(module, nn.RNNBase) else module.weight
    if not isinstance(weight, Tensor):
        raise TypeError(f"{type(module).__name__} has no weight tensor")
    return weight
