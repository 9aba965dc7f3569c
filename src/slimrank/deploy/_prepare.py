# SPDX-License-Identifier: Apache-2.0
"""A copy of a model as exporters like it: norms folded, padding in numbers, plain weights, no caches."""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimrank._errors import BatchesError, OutputError
from slimrank._names import listed
from slimrank.capture import Source, find_sources
from slimrank.deploy._difference import relative_difference
from slimrank.deploy._named_model import left_out, output_tensors
from slimrank.forward import Batch, fixed_seed_without_warnings, outside_inference_mode, run, take_samples
from slimrank.surgery import (
    explicit_padding,
    fold_norm,
    has_computed_weights,
    quiet_copy,
    remember,
    replace_module,
    store_computed_weights,
)

# Largest error that a change may bring to an output, relative to its largest number: some 80 roundings of
# float32. Types with fewer digits round the folded weights themselves, and get a few of their own roundings.
_TOLERANCE, _ROUNDINGS = 1e-5, 8
# Samples of the forward that is traced: two, since code may treat a single one in another way.
_TRACED_SAMPLES = 2
_CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FOLDABLE = (nn.Linear, *_CONVS, *_TRANSPOSED)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A private copy of a model, ready for exporters.

    Attributes:
        model: in eval mode, its parameters without gradients. It is called as the original is.
        notes: what stays as it was, and why; outputs that are left out.
        outputs: paths of the tensors that come out, in their order: keys or indices, "output" for a bare one.
    """

    model: nn.Module
    notes: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Change:
    """Something done to a model in place.

    Attributes:
        target: name of the module that it is about.
        what: words for a note, as in "not folded".
        make: does it.
    """

    target: str
    what: str
    make: Callable[[nn.Module], None]


# A change that was not made, and why.
_Refused = tuple[_Change, str]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Check:
    """What a model must go on to return.

    Attributes:
        batch: that it is given.
        outputs: of the model before any change.
        tolerance: relative error that may be.
    """

    batch: Batch
    outputs: Sequence[tuple[str, Tensor]]
    tolerance: float

    def difference(self, model: nn.Module) -> str | None:
        """How a changed model differs; None where it returns the same."""
        try:
            found = output_tensors(_forward(model, self.batch))
        except BatchesError as error:
            return f"the model fails without it ({error.__cause__!r})"
        if [name for name, _ in found] != [name for name, _ in self.outputs]:
            return "the model would return other outputs"
        for (name, before), (_, after) in zip(self.outputs, found, strict=True):
            if before.shape != after.shape or before.dtype != after.dtype:
                return f"output {name!r} would be {after.dtype} {list(after.shape)}"
            apart = _relative_error(before, after)
            # Written so that nan fails.
            if not apart <= self.tolerance:
                return f"output {name!r} would differ by {apart:.1e}, more than {self.tolerance:.1e}"
        return None


@outside_inference_mode
def prepare(model: nn.Module, batch: Batch, *, keeps_modules: bool = False) -> Prepared:
    """A private copy of a model that computes the same and is easier to export.

    Batch norms are folded into the layer before them, "same" padding is written in numbers, dropout goes,
    computed weights (parametrizations) become plain, and models of transformers keep no cache and gather the
    weights of their experts. Every other change
    is checked on the batch, and undone where the outputs differ.

    Args:
        model: any module; it is not changed.
        batch: real data.
        keeps_modules: modules, and so the names and values of all tensors, stay as they are; only caches and
            experts of transformers' models are told how to compute.

    Returns:
        The copy, what stays as it was, and which outputs are tensors. Export it inside ``plain_attention``:
        torch fuses transformer layers whose parameters want no gradients.

    Raises:
        ModelError: the model cannot be copied.
        BatchesError: the model refuses the batch.
        OutputError: it returns no tensor.
    """
    private = quiet_copy(model)
    _keep_no_cache(private)
    notes = _gather_experts(private)
    result = _forward(private, batch)
    outputs = [(name, tensor.detach().clone()) for name, tensor in output_tensors(result)]
    if not outputs:
        keys = f" with {listed(map(str, result))}" if isinstance(result, Mapping) else ""
        raise OutputError(
            f"{type(model).__name__} returns a {type(result).__name__}{keys} that holds no tensor, so there "
            "is nothing to export; wrap the model in a module that returns tensors"
        )
    if skipped := left_out(result):
        notes.append(f"outputs left out, since they hold no tensors or a cache: {listed(skipped)}")
    names = tuple(name for name, _ in outputs)
    if keeps_modules:
        return Prepared(model=private, notes=tuple(notes), outputs=names)
    check = _Check(batch=batch, outputs=outputs, tolerance=_tolerance(private, outputs))
    unstable = check.difference(private)
    if unstable is None:
        notes += _prepare_modules(private, check)
    else:
        notes.append(
            "norms, padding and weights stay as they are: two forwards of the model differ, so no change "
            f"could be checked ({unstable})"
        )
    return Prepared(model=private, notes=tuple(notes), outputs=names)


def _forward(model: nn.Module, batch: Batch) -> object:
    with fixed_seed_without_warnings(model), torch.no_grad():
        return run(model, batch)


def _tolerance(model: nn.Module, outputs: Sequence[tuple[str, Tensor]]) -> float:
    tensors = (*model.parameters(), *(tensor for _, tensor in outputs))
    digits = [torch.finfo(tensor.dtype).eps for tensor in tensors if tensor.is_floating_point()]
    return max(_TOLERANCE, _ROUNDINGS * max(digits, default=0.0))


def _relative_error(before: Tensor, after: Tensor) -> float:
    """Largest difference over the largest number before; inf where numbers that are not finite moved."""
    if not (before.is_floating_point() or before.is_complex()):
        return 0.0 if torch.equal(before, after) else float("inf")
    return relative_difference(before.detach().cpu(), after.detach().cpu())


def _keep_no_cache(model: nn.Module) -> None:
    """Tells models of transformers to return no keys and values for a next call (in place)."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "use_cache", None) is True:
            config.use_cache = False  # type: ignore[union-attr]


def _gather_experts(model: nn.Module) -> list[str]:
    """Has experts of transformers' models computed by operations of torch (in place), and tells it.

    Their other ways split tokens by expert, in sizes that depend on values, or by an operation of their own,
    without which a file cannot be opened.
    """
    found = []
    for name, module in model.named_modules():
        config = getattr(module, "config", None)
        # What the decorator of transformers puts on classes of experts.
        if hasattr(type(module), "_apply_gate") and hasattr(config, "_experts_implementation"):
            config._experts_implementation = "batched_mm"  # type: ignore[union-attr]
            found.append(name)
    if not found:
        return []
    return [
        f"experts: {listed(found)}; in the file every token reads a copy of the weights of its experts, "
        "which takes memory and time with many tokens"
    ]


def _prepare_modules(model: nn.Module, check: _Check) -> list[str]:
    """Changes a model in place, and tells what was not changed."""
    changes, refused = _plan_simple(model)
    refused += _apply(model, changes, check)
    refused += _fold_norms(model, check)
    reasons: dict[tuple[str, str], list[str]] = {}
    for change, reason in refused:
        reasons.setdefault((change.what, reason), []).append(change.target)
    return [f"{what}: {listed(names)}; {reason}" for (what, reason), names in reasons.items()]


def _plan_simple(model: nn.Module) -> tuple[list[_Change], list[_Refused]]:
    """All but the folding of norms."""
    changes: list[_Change] = []
    refused: list[_Refused] = []
    for name, module in model.named_modules():
        if has_computed_weights(module):
            changes.append(_Change(target=name, what="weights still computed", make=partial(_store, name)))
        if type(module) in _DROPOUTS:
            changes.append(_Change(target=name, what="dropout left in", make=partial(_drop, name)))
        if isinstance(module, _CONVS) and isinstance(module.padding, str):
            change = _Change(target=name, what="padding not in numbers", make=partial(_pad, name))
            if module.padding_mode != "zeros":
                refused.append((change, f"it pads by {module.padding_mode!r}"))
            elif not _is_plain(module, _CONVS):
                refused.append((change, "it has hooks or a forward of its own"))
            else:
                changes.append(change)
    return changes, refused


def _store(name: str, model: nn.Module) -> None:
    store_computed_weights(model.get_submodule(name))


def _drop(name: str, model: nn.Module) -> None:
    replace_module(model, name, nn.Identity().eval())


def _pad(name: str, model: nn.Module) -> None:
    padded = explicit_padding(model.get_submodule(name))
    if padded is not None:
        replace_module(model, name, padded)


def _fold(layer: str, norm: str, model: nn.Module) -> None:
    fold_norm(model.get_submodule(layer), model.get_submodule(norm))
    replace_module(model, norm, nn.Identity().eval())


def _fold_norms(model: nn.Module, check: _Check) -> list[_Refused]:
    """Folds the batch norms of a model in place; those that stay, and why."""
    batch = check.batch
    sample = batch if batch.is_whole else take_samples(batch, range(min(_TRACED_SAMPLES, batch.n_samples)))
    failed: list[_Refused] = []
    while True:
        folds, others = _plan_folds(model, sample, tried={change.target for change, _ in failed})
        if not folds:
            return [*failed, *others]
        # Once folded, a norm may uncover another one behind it.
        failed += _apply(model, folds, check)


def _plan_folds(model: nn.Module, sample: Batch, tried: Set[str]) -> tuple[list[_Change], list[_Refused]]:
    """The norms to fold, and those that cannot be, of those that were not tried yet."""
    modules = dict(model.named_modules())
    norms = [name for name, module in modules.items() if isinstance(module, _BatchNorm) and name not in tried]
    if not norms:
        return [], []
    layers = [name for name, module in modules.items() if isinstance(module, _FOLDABLE)]
    with fixed_seed_without_warnings(model):
        sources = find_sources(model, sample, norms, layers)
    folds: list[_Change] = []
    others: list[_Refused] = []
    for name, source in sources.items():
        layer = "" if isinstance(source, str) else source.layer
        change = _Change(target=name, what="not folded", make=partial(_fold, layer, name))
        reason = _norm_reason(modules[name])
        if reason is None:
            reason = source if isinstance(source, str) else _layer_reason(modules[layer], source)
        if reason is None:
            folds.append(change)
        else:
            others.append((change, reason))
    return folds, others


def _norm_reason(norm: nn.Module) -> str | None:
    """Why a norm cannot be folded into any layer; None where it can."""
    if getattr(norm, "running_mean", None) is None:
        return "it keeps no running statistics"
    return None if _is_plain(norm, _NORMS) else f"{type(norm).__name__} has hooks or a forward of its own"


def _layer_reason(layer: nn.Module, source: Source) -> str | None:
    """Why a layer cannot take the norm behind it; None where it can."""
    if not _is_plain(layer, _FOLDABLE):
        return f"the {type(layer).__name__} before has hooks or a forward of its own"
    # Of (N, C) and (N, C, ...) both know the channels at 1; of more dimensions a Linear has them last, and a
    # convolution of one sample first.
    n_dims = 2 if isinstance(layer, nn.Linear) else 2 + len(layer.kernel_size)  # type: ignore[arg-type]
    return None if source.n_dims == n_dims else "the norm's channels are not those of the layer before"


def _is_plain(module: nn.Module, kinds: Sequence[type[nn.Module]]) -> bool:
    """Whether a module computes what torch's own does, with a weight of its own or none."""
    kind = next((kind for kind in kinds if isinstance(module, kind)), None)
    if kind is None or "forward" in vars(module) or "weight" not in module._parameters:
        return False
    if module._forward_hooks or module._forward_pre_hooks:
        return False
    return all(
        getattr(type(module), method, None) is getattr(kind, method, None)
        for method in ("forward", "_conv_forward", "__call__")
    )


def _apply(model: nn.Module, changes: Sequence[_Change], check: _Check) -> list[_Refused]:
    """Changes a model in place, but for the changes that its outputs do not survive.

    Returns:
        Those, and what they would have done.
    """
    if not changes:
        return []
    go_back = remember(model)
    for change in changes:
        change.make(model)
    difference = check.difference(model)
    if difference is None:
        return []
    go_back()
    if len(changes) == 1:
        return [(changes[0], difference)]
    # By halves: few changes fail, if any.
    middle = len(changes) // 2
    return [*_apply(model, changes[:middle], check), *_apply(model, changes[middle:], check)]
