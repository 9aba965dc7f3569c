# SPDX-License-Identifier: Apache-2.0
"""Torch-Pruning 1.6.1 on the benchmark's networks, to counted MACs; runs in an environment of its own."""

import copy
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.tasks.glyphs import labelled_set
from slimrank.capture import count_cost
from slimrank.forward import as_batch

LABELLED = {"group Taylor": 2000, "group magnitude": 0}
IMPORTANCES: Mapping[str, Callable[[], object]] = {
    "group Taylor": tp.importance.GroupTaylorImportance,
    "group magnitude": lambda: tp.importance.GroupMagnitudeImportance(p=2),
}
# Where channels are ranked: over the whole network, over groups of like structure, in each group.
SCOPES: Mapping[str, Mapping[str, bool]] = {
    "global": {"global_pruning": True},
    "isomorphic": {"global_pruning": True, "isomorphic": True},
    "uniform": {"global_pruning": False},
}
STEPS = 14  # of the bisection


class PruningError(ValueError):
    """Torch-Pruning came to no network that runs."""


def pruned_to(
    model: nn.Module, importance: str, scope: str, skip: Sequence[str], keep_ratio: float
) -> nn.Module:
    """The network that Torch-Pruning makes of another, its pruning ratio found by bisection.

    Args:
        model: the original, in eval mode; not changed, but for its gradients.
        importance: key of ``IMPORTANCES``.
        scope: key of ``SCOPES``.
        skip: globs of the layers to leave alone; the last layer is left alone in any case.
        keep_ratio: of the counted MACs.

    Returns:
        The largest network found whose MACs are within the budget.

    Raises:
        PruningError: none was found, or Torch-Pruning raised.
    """
    sample = as_batch(torch.zeros(1, 1, 32, 32))
    gradients = _gradients(model) if LABELLED[importance] else {}
    budget = keep_ratio * count_cost(model, sample).macs
    low, high = 0.0, 1.0
    best: tuple[int, nn.Module] | None = None
    failure: Exception | None = None
    for _ in range(STEPS):
        ratio = (low + high) / 2
        try:
            found = _pruned(model, gradients, importance, scope, skip, ratio)
            macs = count_cost(found, sample).macs
        except Exception as error:  # whatever a network that does not fit together raises
            failure, high = error, ratio
            continue
        if macs > budget:
            low = ratio
            continue
        high = ratio
        if best is None or macs >= best[0]:
            best = (macs, found)
    if best is None:
        raise PruningError(
            f"{type(failure).__name__}: {failure}" if failure else "the budget is out of reach"
        )
    return best[1]


def _pruned(
    original: nn.Module,
    gradients: Mapping[str, Tensor],
    importance: str,
    scope: str,
    skip: Sequence[str],
    ratio: float,
) -> nn.Module:
    model = copy.deepcopy(original)
    for name, parameter in model.named_parameters():
        parameter.grad = gradients.get(name)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    last = list(layers)[-1]
    ignored = [m for name, m in layers.items() if name == last or any(fnmatch(name, glob) for glob in skip)]
    heads = {m.qkv: m.heads for m in model.modules() if hasattr(m, "heads") and hasattr(m, "qkv")}
    pruner = tp.pruner.BasePruner(
        model,
        torch.zeros(1, 1, 32, 32),
        importance=IMPORTANCES[importance](),
        pruning_ratio=ratio,
        ignored_layers=ignored,
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=False,
        head_pruning_ratio=ratio if heads else 0.0,
        in_channel_groups={},
        out_channel_groups={},
        unwrapped_parameters=[(model.position, 2)] if hasattr(model, "position") else None,
        **SCOPES[scope],
    )
    pruner.step()
    for module in model.modules():
        if hasattr(module, "heads") and hasattr(module, "qkv"):
            module.heads = pruner.num_heads[module.qkv]
    return model.eval()


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    """Gradients of the cross-entropy on the labelled pictures."""
    model.zero_grad()
    images, labels = labelled_set(2000)
    for batch, answers in zip(images.split(250), labels.split(250), strict=True):
        (functional.cross_entropy(model(batch), answers, reduction="sum") / len(labels)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def estimate_norms(model: nn.Module, batches: Sequence[Tensor]) -> bool:
    """Estimates the statistics of the batch norms again, in place.

    Args:
        model: left in eval mode.
        batches: pictures.

    Returns:
        Whether there are any batch norms.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
        norm.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    model.eval()
    return bool(norms)
