# SPDX-License-Identifier: Apache-2.0
"""Why a layer is left alone."""

import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList, is_parametrized

from slimrank.records import Call, LayerKind

SKIPPED = "skipped by the caller"
DEPTHWISE = "depthwise convolution"
_COMPUTED = (
    "its weight is computed from other parameters (parametrised, as by weight norm); make it plain with "
    "torch.nn.utils.remove_weight_norm or torch.nn.utils.parametrize.remove_parametrizations"
)
# Others (quantised, complex, float8) cannot be decomposed and stored again.
PLAIN_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def reason_for(
    module: nn.Module,
    name: str,
    kind: LayerKind,
    base: type[nn.Module],
    calls: Sequence[Call],
    owners: Counter[int],
    skip: Sequence[str],
    uses: Mapping[str, str],
) -> str | None:
    """Why a layer is left alone; None where nothing speaks against it.

    Args:
        module: the layer.
        name: its dotted name.
        kind: what methods take it for.
        base: the class of torch that it derives from.
        calls: its calls in one forward; none where it was not run.
        owners: by ``id`` of a parameter, how many modules hold it.
        skip: layer-name globs that the caller wants left alone.
        uses: by parameter name, the operation that reads it outside of its layer.
    """
    # The caller's wish comes first; what follows goes from the class to the numbers in the weight.
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in skip):
        return SKIPPED
    if kind == "other":
        is_computed = isinstance(module, ParametrizationList) or is_parametrized(module)
        return _COMPUTED if is_computed else _kind_reason(module)
    return _layer_reason(module, name, base, owners) or (
        _call_reason(module, name, calls, uses) or _content_reason(module, kind, calls)
    )


def _layer_reason(module: nn.Module, name: str, base: type[nn.Module], owners: Counter[int]) -> str | None:
    if name == "":
        return "the model itself is this layer; wrap it in nn.Sequential to compress it"
    if _has_own_forward(module, base):
        return f"{type(module).__name__} has a forward of its own"
    weights, biases = _matrix_of(module)
    if not weights:
        return _COMPUTED
    if isinstance(module, nn.RNNBase) and not biases:
        return "it has no bias, which would take up what its input matrix loses of the mean"
    reasons = [_storage_reason(weight, None, owners) for weight in weights]
    reasons += [_storage_reason(weights[0], bias, owners) for bias in biases]
    return next((reason for reason in reasons if reason is not None), None)


def _matrix_of(module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Weights and biases of a layer's matrix: of a recurrent one, what its first layer makes of inputs."""
    ends = ("_ih_l0", "_ih_l0_reverse") if isinstance(module, nn.RNNBase) else ("",)

    def of_role(role: str) -> list[Tensor]:
        found = (module._parameters.get(role + end) for end in ends)
        return [tensor for tensor in found if tensor is not None]

    return of_role("weight"), of_role("bias")


def _kind_reason(module: nn.Module) -> str:
    """Why a module of no known kind is left alone."""
    reason = f"no method for {type(module).__name__}"
    # What has no module for each expert has matrices that are stacked: as many in each of several tensors.
    stacks = {
        name: tuple(weight.shape)
        for name, weight in module._parameters.items()
        if weight is not None and weight.ndim == 3 and len(weight) > 1
    }
    if len(stacks) < 2 or len({shape[0] for shape in stacks.values()}) > 1:
        return reason
    count = next(iter(stacks.values()))[0]
    told = ", ".join(f"{name} {list(shape)}" for name, shape in stacks.items())
    return (
        f"{reason}: the weights of its {count} experts are stacked in one tensor each ({told}), and methods "
        "take experts that are modules of their own"
    )


def _has_own_forward(module: nn.Module, base: type[nn.Module]) -> bool:
    kind = type(module)
    if "forward" in vars(module) or "_conv_forward" in vars(module):
        return True
    return (
        kind.forward is not base.forward
        or kind.__call__ is not base.__call__
        or (getattr(kind, "_conv_forward", None) is not getattr(base, "_conv_forward", None))
    )


def _storage_reason(weight: Tensor, bias: Tensor | None, owners: Counter[int]) -> str | None:
    if weight.dtype not in PLAIN_DTYPES or weight.is_sparse or weight.is_meta:
        on_meta = " on the meta device" if weight.is_meta else ""
        return f"its weight is {weight.dtype}{on_meta}, not a plain floating tensor"
    if owners[id(weight)] > 1:
        return "its weight is shared with another module"
    if bias is not None and owners[id(bias)] > 1:
        return "its bias is shared with another module"
    return None


def _call_reason(module: nn.Module, name: str, calls: Sequence[Call], uses: Mapping[str, str]) -> str | None:
    if not calls:
        used = uses.get(f"{name}.weight")
        return f"never called as a module; its weight is read by {used}" if used else "never called"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks:
        return "it carries hooks, which a replacement would lose; remove them to compress it"
    return None


def _content_reason(module: nn.Module, kind: LayerKind, calls: Sequence[Call]) -> str | None:
    weights, _ = _matrix_of(module)
    if not any(weight.any() for weight in weights):
        return "its weight is all zero"
    if kind == "recurrent":
        is_packed = any(not call.input_shape for call in calls)
        return "it is given packed sequences, which no other layer can read first" if is_packed else None
    # Of one output for each group, a pair would have one channel between its factors, and save nothing.
    return DEPTHWISE if 1 < getattr(module, "groups", 1) == len(weights[0]) else None
