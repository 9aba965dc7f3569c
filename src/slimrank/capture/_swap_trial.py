# SPDX-License-Identifier: Apache-2.0
"""Trial swaps: which layers may be replaced without their parents noticing."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from slimrank.forward import Batch, call, fixed_seed, named_tensors
from slimrank.surgery import copy_model, replace_module, without_nesting

# Share of the largest value. A wrapped layer runs the same kernels: what differs by more is no rounding.
_TOLERANCE = 1e-4


def trial_swap(model: nn.Module, sample: Batch, names: Sequence[str]) -> Mapping[str, str]:
    """Wraps layers in an ``nn.Sequential`` each, runs the model, and sees whether anything changes.

    A wrapped layer computes the same but has none of its attributes, so a parent that reads them, or holds
    another reference, shows itself. All layers are tried at once, and halved only where that fails.

    Args:
        model: in eval mode; not changed.
        sample: one sample.
        names: layers to try.

    Returns:
        Reason by name, for the layers that cannot be replaced.
    """
    copy = copy_model(model)
    # Replacing a part of an encoder ends the zeros at padded positions that it gives in evaluation alone.
    without_nesting(copy)
    expected = [_observe(copy, sample, mode) for mode in _MODES]
    reasons: dict[str, str] = {}
    pending = [list(names)] if names else []
    while pending:
        group = pending.pop()
        problem = _try(copy, sample, group, expected)
        if problem is None:
            continue
        if len(group) == 1:
            reasons[group[0]] = problem
            continue
        half = len(group) // 2
        pending += [group[half:], group[:half]]
    return reasons


# Parents may take another path with gradients or in training, and read the layer's attributes only there.
_MODES = ("inference", "gradients", "training")
_Observed = tuple[list[Tensor], str | None]


def _observe(model: nn.Module, sample: Batch, mode: str) -> _Observed:
    """Outputs of a forward, or the error that it raised. Buffers (batch-norm statistics) are put back."""
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    flags = {module: module.training for module in model.modules()}
    model.train(mode == "training")
    try:
        with fixed_seed(model), torch.set_grad_enabled(mode != "inference"):
            result = call(model, sample)
        return [tensor.detach() for _, tensor in named_tensors(result)], None
    except Exception as error:
        # Whatever the user's code raises is the answer to the question asked here.
        return [], f"{type(error).__name__}: {error}".splitlines()[0]
    finally:
        for module, training in flags.items():
            module.training = training
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                if name in buffers:
                    buffer.copy_(buffers[name])


class Sequential(nn.Sequential):
    """A layer in a container that counts its calls; no hooks, since torch's fused layers look for those.

    Its name is torch's own, as it stands in the reasons that users read.
    """

    n_calls = 0

    def forward(self, *args: object, **kwargs: object) -> object:
        self.n_calls += 1
        forward: Callable[..., object] = super().forward
        return forward(*args, **kwargs)


def _try(model: nn.Module, sample: Batch, names: Sequence[str], expected: Sequence[_Observed]) -> str | None:
    layers = {name: model.get_submodule(name) for name in names}
    wrappers = {name: Sequential(layer) for name, layer in layers.items()}
    for name, wrapper in wrappers.items():
        replace_module(model, name, wrapper)
    try:
        for mode, (tensors, error) in zip(_MODES, expected, strict=True):
            if error is not None:
                continue
            got, problem = _observe(model, sample, mode)
            if problem is not None:
                return f"its parent uses more than its output ({problem})"
            if not _same(tensors, got):
                return "its parent computes something else when the layer is wrapped"
    finally:
        for name, layer in layers.items():
            replace_module(model, name, layer)
    if any(wrapper.n_calls == 0 for wrapper in wrappers.values()):
        return "the model calls it through another reference than its place in the module tree"
    return None


def _same(expected: Sequence[Tensor], got: Sequence[Tensor]) -> bool:
    if len(expected) != len(got):
        return False
    for before, after in zip(expected, got, strict=True):
        if before.shape != after.shape or before.dtype != after.dtype:
            return False
        if before.is_floating_point():
            # Non-finite training outputs (a batch norm over one value) cannot tell anything.
            finite = before.isfinite() & after.isfinite()
            difference = (before - after)[finite].abs()
            scale = before[finite].abs().max() if finite.any() else before.new_ones(())
            if difference.numel() and difference.max() > _TOLERANCE * scale.clamp_min(1e-12):
                return False
        elif not torch.equal(before, after):
            return False
    return True
