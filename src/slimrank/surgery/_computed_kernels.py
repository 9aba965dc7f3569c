# SPDX-License-Identifier: Apache-2.0
"""Layers whose kernel is computed in every forward, exchanged for plain ones that hold what it comes to."""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from slimrank.records import LayerSpec
from slimrank.surgery._computed_weights import has_computed_weights, is_weight_hook
from slimrank.surgery._replace import replace_module

_BASES: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PRODUCTS: frozenset[object] = frozenset(
    {functional.linear, functional.conv1d, functional.conv2d, functional.conv3d}
)
# Roundings of the dtype by which layer and plain layer may differ, as a share of the largest value.
_EPS_FACTOR = 256
# Inputs that a layer is run on alone; positions beyond what the kernel covers.
_SAMPLES, _POSITIONS = 2, 3


def computed_kernels(model: nn.Module) -> list[str]:
    """Layers that compute their kernel in every forward, and whose call is an ordinary one.

    Args:
        model: a private copy; each such layer is run alone, in eval mode.

    Returns:
        Names, as ``fold_kernels`` takes them: parametrizations, torch's older weight norm, spectral norm and
        pruning masks, and subclasses of the user's with a forward of their own (weight standardisation).
    """
    return [name for name, module in _candidates(model) if _plain_layer(module) is not None]


def fold_kernels(model: nn.Module, names: Collection[str]) -> None:
    """Puts plain layers in place of those that compute their kernel, with that of eval mode (in place).

    Args:
        model: a private copy.
        names: of ``computed_kernels``; others stay as they are.
    """
    for name, module in list(_candidates(model)):
        plain = _plain_layer(module) if name in names else None
        if plain is not None:
            replace_module(model, name, plain)


def fold_as_planned(model: nn.Module, layers: Mapping[str, LayerSpec]) -> list[str]:
    """Folds the kernels that were folded where a plan was made (in place).

    Args:
        model: a private copy of the model that the plan belongs to, with any weights.
        layers: of the plan's first structure.

    Returns:
        Names of the layers that a plain one replaced.
    """
    names = [
        name for name, module in _candidates(model) if name in layers and _is_plain(layers[name], module)
    ]
    fold_kernels(model, names)
    return names


def _is_plain(spec: LayerSpec, module: nn.Module) -> bool:
    """Whether a plan knows a layer as one of torch's own class."""
    base = _base_of(module)
    return base is not None and spec.class_name == base.__name__


def _candidates(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    owners = _owners(model)
    for name, module in model.named_modules():
        base = _base_of(module)
        if not name or base is None or not _may_compute(module, base):
            continue
        # Hooks would be lost, and a parameter that others hold must stay one.
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        own = _owners(module)
        if all(map(is_weight_hook, hooks)) and all(owners[key] == count for key, count in own.items()):
            yield name, module


def _owners(model: nn.Module) -> Counter[int]:
    """By ``id`` of a parameter, how many modules of a tree hold it."""
    return Counter(id(p) for module in model.modules() for p in module._parameters.values() if p is not None)


def _base_of(module: nn.Module) -> type[nn.Module] | None:
    return next((base for base in _BASES if isinstance(module, base)), None)


def _may_compute(module: nn.Module, base: type[nn.Module]) -> bool:
    if has_computed_weights(module):
        return True
    kind = type(module)
    is_users = kind.__module__.partition(".")[0] != "torch"
    names = ("forward", "_conv_forward")
    return is_users and any(getattr(kind, name, None) is not getattr(base, name, None) for name in names)


class _Kernels(TorchFunctionMode):
    """Sees weight and bias of every product that a layer runs."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[object, object, object]] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs everything as it is."""
        kwargs = kwargs or {}
        if func in _PRODUCTS:
            given, weight, bias = (
                args[index] if len(args) > index else kwargs.get(key)
                for index, key in enumerate(("input", "weight", "bias"))
            )
            self.seen.append((given, weight, bias))
        return func(*args, **kwargs)


def _plain_layer(module: nn.Module) -> nn.Module | None:
    """What gives the same as a layer does alone; None where that is no plain layer."""
    modes = [(inner, inner.training) for inner in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            return _plain_like(module)
    except Exception:
        # Whatever its code raises: it cannot be run alone on one tensor, so it is no plain layer.
        return None
    finally:
        for inner, mode in modes:
            inner.training = mode


def _plain_like(module: nn.Module) -> nn.Module | None:
    plain: nn.Module | None = None
    generator = torch.Generator().manual_seed(0)
    reference = next(module.parameters())
    for _ in range(2):
        x = torch.randn(_input_shape(module), generator=generator).to(reference)
        kernels = _Kernels()
        with kernels:
            expected = module(x)
        if len(kernels.seen) != 1 or not isinstance(expected, Tensor):
            return None
        given, weight, bias = kernels.seen[0]
        if not isinstance(given, Tensor) or not isinstance(weight, Tensor):
            return None
        if not _is_kernel_of(module, weight) or weight is module._parameters.get("weight"):
            return None
        if plain is None:
            # What the forward pads by itself, alike on both sides, a plain layer can do.
            padded = [(size - before) // 2 for size, before in zip(given.shape[2:], x.shape[2:], strict=True)]
            plain = _with(module, weight, bias if isinstance(bias, Tensor) else None, padded)
        # The second input shows kernels that depend on it.
        got = plain(x)
        scale = max(float(expected.abs().max()), torch.finfo(expected.dtype).tiny)
        is_same = got.shape == expected.shape and got.dtype == expected.dtype
        if not is_same or float((got - expected).abs().max()) > (
            _EPS_FACTOR * torch.finfo(expected.dtype).eps * scale
        ):
            return None
    if plain is not None:
        plain.train(module.training)
    return plain


def _input_shape(module: nn.Module) -> Sequence[int]:
    if isinstance(module, nn.Linear):
        return (_SAMPLES, module.in_features)
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        raise TypeError(f"{type(module).__name__} is no layer whose kernel may be computed")
    covered = [d * (k - 1) + 1 for d, k in zip(module.dilation, module.kernel_size, strict=True)]
    return (_SAMPLES, module.in_channels, *(size + _POSITIONS for size in covered))


def _is_kernel_of(module: nn.Module, weight: Tensor) -> bool:
    if isinstance(module, nn.Linear):
        return tuple(weight.shape) == (module.out_features, module.in_features)
    if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return False
    inner = module.in_channels // module.groups
    return tuple(weight.shape) == (module.out_channels, inner, *module.kernel_size)


def _with(module: nn.Module, weight: Tensor, bias: Tensor | None, padded: Sequence[int]) -> nn.Module:
    """A layer of torch's own class, laid out as a layer of a subclass that pads by some more."""
    plain: nn.Module
    if isinstance(module, nn.Linear):
        plain = nn.Linear(module.in_features, module.out_features, bias=bias is not None, device="meta")
    elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        kind: type[nn.Conv1d | nn.Conv2d | nn.Conv3d] = next(
            kind for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(module, kind)
        )
        plain = kind(
            module.in_channels,
            module.out_channels,
            module.kernel_size,  # type: ignore[arg-type]
            stride=module.stride,  # type: ignore[arg-type]
            padding=_padding(module.padding, padded),  # type: ignore[arg-type]
            dilation=module.dilation,  # type: ignore[arg-type]
            groups=module.groups,
            bias=bias is not None,
            padding_mode=module.padding_mode,
            device="meta",
        )
    else:
        raise TypeError(f"{type(module).__name__} is no layer whose kernel may be computed")
    is_trained = any(parameter.requires_grad for parameter in module.parameters())
    plain.register_parameter("weight", nn.Parameter(weight.detach().clone(), requires_grad=is_trained))
    if bias is not None:
        plain.register_parameter("bias", nn.Parameter(bias.detach().clone(), requires_grad=is_trained))
    return plain


def _padding(padding: str | tuple[int, ...], padded: Sequence[int]) -> str | tuple[int, ...]:
    if isinstance(padding, str) or not any(padded):
        return padding
    return tuple(size + more for size, more in zip(padding, padded, strict=True))
