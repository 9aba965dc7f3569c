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
        return _COMPUTED if is_computed else f"no method for {type(module).__name__}"
    if name == "":
        return "the model itself is this layer; wrap it in nn.Sequential to compress it"
    if _has_own_forward(module, base):
        return f"{type(module).__name__} has a forward of its own"
    weight = module._parameters.get("weight")
    if weight is None:
        return _COMPUTED
    return (
        _storage_reason(weight, module._parameters.get("bias"), owners)
        or _call_reason(module, name, calls, uses)
        or _content_reason(module, weight)
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


def _content_reason(module: nn.Module, weight: Tensor) -> str | None:
    if not weight.any():
        return "its weight is all zero"
    groups = getattr(module, "groups", 1)
    if groups != 1:
        return DEPTHWISE if groups == weight.shape[0] else f"grouped convolution ({groups} groups)"
    return None
