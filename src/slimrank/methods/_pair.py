# SPDX-License-Identifier: Apache-2.0
"""Low-rank pairs: from a dense weight and its metric to two factors, their error, and two modules."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod

import torch
from torch import Tensor, nn

from slimrank.linalg import (
    Moments,
    Split,
    fit_split,
    initial_first_factor,
    nested_errors,
    output_basis,
    project_pair,
    refine_split,
    square_roots,
)
from slimrank.methods._table import RULES
from slimrank.records import Form, LayerSpec

_GRADIENT_SHRINK = 0.1
_Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Factor = nn.Linear | _Conv
_CONVS: Mapping[str, Callable[..., _Conv]] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Closed:
    """Decomposition of the forms with a closed solution: see ``output_basis``."""

    basis: Tensor
    errors: Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Opened:
    """Decomposition of a form that shares the kernel: see ``initial_first_factor``."""

    split: Split
    moment: Tensor
    weighted: Tensor
    goal: Tensor
    first: Tensor


@dataclass(slots=True, kw_only=True, eq=False)
class Target:
    """What a pair shall reproduce, and how errors are weighed; it remembers its decompositions.

    Attributes:
        dense: (O, D) float64, the weight to approximate.
        moments: second moments H of the D inputs.
        root: (O, O) float64, G^(1/2).
        inverse_root: (O, O) float64, G^(-1/2).
        ridge: share of the mean diagonal of H that serves the fit.
        closed, splits, ridged: what was decomposed already, one per form.
    """

    dense: Tensor
    moments: Moments
    root: Tensor
    inverse_root: Tensor
    ridge: float
    closed: _Closed | None = field(default=None, init=False)
    splits: dict[Form, _Opened] = field(default_factory=dict, init=False)
    ridged: Tensor | None = field(default=None, init=False)

    @property
    def weighted(self) -> Tensor:
        """(O, D) float64: G^(1/2) W."""
        return self.root @ self.dense


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """Two factors of a layer.

    Attributes:
        form: how the kernel is split.
        first: (R, C_in, F) float64.
        second: (O, R, S) float64.
    """

    form: Form
    first: Tensor
    second: Tensor

    @property
    def rank(self) -> int:
        """Size between the factors."""
        return len(self.first)


def metric_roots(gram: Tensor | None, n_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Roots of the output metric; identities where there is none.

    Args:
        gram: (O, O) second moment of output gradients, or None.
        n_out: O.
        device: where to compute.

    Returns:
        Two (O, O) float64: G^(1/2), G^(-1/2).
    """
    if gram is None:
        eye = torch.eye(n_out, dtype=torch.float64, device=device)
        return eye, eye
    return square_roots(gram.double().to(device), shrink=_GRADIENT_SHRINK)


def weights_target(weight: Tensor) -> Target:
    """A target about whose inputs and outputs nothing is known: plain, unweighted decompositions.

    Args:
        weight: (O, D) float64.

    Returns:
        The target, with identities for moments and metric.
    """
    root, inverse_root = metric_roots(None, len(weight), weight.device)
    moments = Moments.identity(weight.shape[1], weight.device)
    return Target(dense=weight, moments=moments, root=root, inverse_root=inverse_root, ridge=1e-12)


def error_by_rank(spec: LayerSpec, form: Form, target: Target, *, limit: int | None = None) -> Tensor:
    """Error of a form at every rank, from one decomposition.

    Exact for ``linear`` and ``kxk_1x1``. For the other forms an upper bound on the ridged moments, which
    refinement lowers.

    Args:
        spec: the layer.
        form: how the kernel is split.
        target: what to reproduce.
        limit: largest rank of interest; None for all.

    Returns:
        (R + 1,) float64: entry r is ``1/2 tr((W - W_r)^T G (W - W_r) H)``; entry 0 is all.
    """
    if RULES[form].is_closed:
        return _closed(target).errors[: None if limit is None else limit + 1]
    opened = _split(spec, form, target)
    return nested_errors(opened.weighted, opened.goal, opened.moment, opened.first[:limit], opened.split)


def true_error(target: Target, weight: Tensor) -> float:
    """Error of any weight in place of the target's, on the un-ridged moments.

    Args:
        target: what to reproduce.
        weight: (O, D) float64.

    Returns:
        ``1/2 tr((W - W')^T G (W - W') H)``.
    """
    return float(target.moments.diagonal_of(target.root @ (target.dense - weight)).sum() / 2)


def fit_pair(spec: LayerSpec, form: Form, rank: int, target: Target, *, alternations: int) -> Pair:
    """Factors of one rank.

    Args:
        spec: the layer.
        form: how the kernel is split.
        rank: size between the factors.
        target: what to reproduce; it remembers its decompositions.
        alternations: refinement rounds at most, for forms without closed solution.

    Returns:
        The pair, balanced.
    """
    if RULES[form].is_closed:
        basis = _closed(target).basis
        first, second = project_pair(target.dense, basis, rank, target.root, target.inverse_root)
        channels = spec.weight_shape[1]
        return _balanced(form, first.view(rank, channels, -1), second.unsqueeze(-1))
    opened = _split(spec, form, target)
    goal, moment, split = opened.goal, opened.moment, opened.split
    factors = fit_split(goal, moment, opened.first[:rank], split)
    if alternations:
        factors = refine_split(goal, moment, factors, split, alternations=alternations)
    second = torch.einsum("uo,ors->urs", target.inverse_root, factors.second)
    return _balanced(form, factors.first, second)


def _closed(target: Target) -> "_Closed":
    if target.closed is None:
        basis, errors = output_basis(target.weighted, target.moments, ridge=target.ridge)
        target.closed = _Closed(basis=basis, errors=errors)
    return target.closed


def _split(spec: LayerSpec, form: Form, target: Target) -> "_Opened":
    known = target.splits.get(form)
    if known is not None:
        return known
    split, columns = _arrangement(spec, form, target.dense.device)
    if target.ridged is None:
        target.ridged = target.moments.ridged(target.ridge)
    moment, weighted = target.ridged, target.weighted
    if not bool((columns[1:] > columns[:-1]).all()):
        moment, weighted = moment[columns][:, columns].contiguous(), weighted[:, columns].contiguous()
    first = initial_first_factor(weighted, moment, split)
    goal = weighted @ moment
    opened = _Opened(split=split, moment=moment, weighted=weighted, goal=goal, first=first)
    target.splits[form] = opened
    return opened


def effective_weight(spec: LayerSpec, pair: Pair) -> Tensor:
    """The weight that a pair amounts to: (O, D) float64, columns as in ``weight.flatten(1)``."""
    product = torch.einsum("ops,pif->oifs", pair.second, pair.first).reshape(len(pair.second), -1)
    _, columns = _arrangement(spec, pair.form, product.device)
    weight = torch.empty_like(product)
    weight[:, columns] = product
    return weight


def build_pair(
    spec: LayerSpec, layer: nn.Module, pair: Pair, bias: Tensor | None
) -> tuple[nn.Module, nn.Module]:
    """The two modules that replace a layer.

    Args:
        spec: its geometry.
        layer: the original; dtype, device, mode and requires_grad are taken from it.
        pair: the factors.
        bias: (O,) of the second module; None for none.

    Returns:
        Two ordinary torch modules, without bias in the first.
    """
    modules = empty_pair(spec, pair.form, pair.rank, has_bias=bias is not None)
    shapes = [module.weight.shape for module in modules]
    weights = (pair.first, pair.second)
    reference = layer.weight
    if not isinstance(reference, Tensor):
        raise TypeError(f"{type(layer).__name__} has no weight tensor")
    for module, weight, shape in zip(modules, weights, shapes, strict=True):
        module.weight = nn.Parameter(
            weight.reshape(shape).to(device=reference.device, dtype=reference.dtype),
            requires_grad=reference.requires_grad,
        )
        module.train(layer.training)
    if bias is not None:
        own = layer.bias if isinstance(layer.bias, Tensor) else reference
        modules[1].bias = nn.Parameter(
            bias.to(device=reference.device, dtype=own.dtype, copy=True), requires_grad=own.requires_grad
        )
    return modules


def empty_pair(spec: LayerSpec, form: Form, rank: int, *, has_bias: bool) -> tuple[_Factor, _Factor]:
    """Modules of the right shapes, on the meta device.

    Args:
        spec: the layer to replace.
        form: how the kernel is split.
        rank: size between the factors.
        has_bias: whether the second has a bias.

    Returns:
        Two modules whose parameters hold no storage yet.
    """
    c_out, c_in, *_ = spec.weight_shape
    if form == "linear":
        return (
            nn.Linear(c_in, rank, bias=False, device="meta"),
            nn.Linear(rank, c_out, bias=has_bias, device="meta"),
        )
    conv = _CONVS[spec.kind]
    rule, n_dims = RULES[form], len(spec.kernel)

    def factor(n_in: int, n_out: int, taps: tuple[bool, ...], bias: bool) -> _Conv:
        def pick(values: tuple[int, ...], neutral: int) -> tuple[int, ...]:
            return tuple(v if used else neutral for v, used in zip(values, taps, strict=True))

        padding = spec.padding if isinstance(spec.padding, str) else pick(spec.padding, 0)
        if not any(taps):
            padding = pick((0,) * len(taps), 0)
        return conv(
            n_in,
            n_out,
            pick(spec.kernel, 1),
            stride=pick(spec.stride, 1),
            padding=padding,
            dilation=pick(spec.dilation, 1),
            bias=bias,
            padding_mode=spec.padding_mode if any(taps) else "zeros",
            device="meta",
        )

    return factor(c_in, rank, rule.first_taps(n_dims), bias=False), factor(
        rank, c_out, rule.second_taps(n_dims), bias=has_bias
    )


def _arrangement(spec: LayerSpec, form: Form, device: torch.device) -> tuple[Split, Tensor]:
    """How columns divide, and their order: channels, taps of the first factor, taps of the second."""
    channels, kernel = spec.weight_shape[1], spec.kernel
    taken = RULES[form].first_taps(len(kernel))
    first = [dim for dim, is_taken in enumerate(taken) if is_taken]
    second = [dim for dim, is_taken in enumerate(taken) if not is_taken]
    columns = torch.arange(channels * prod(kernel), device=device).view(channels, *kernel)
    ordered = columns.permute(0, *(1 + dim for dim in first + second)).reshape(-1)
    split = Split(
        channels=channels,
        first=prod(kernel[dim] for dim in first),
        second=prod(kernel[dim] for dim in second),
    )
    return split, ordered


def _balanced(form: Form, first: Tensor, second: Tensor) -> Pair:
    """Equal norms per component on both sides: kind to half precision and to int8."""
    tiny = torch.finfo(first.dtype).tiny
    norms = first.flatten(1).norm(dim=1).clamp_min(tiny)
    other = second.transpose(0, 1).flatten(1).norm(dim=1).clamp_min(tiny)
    scale = (other / norms).sqrt()
    return Pair(form=form, first=first * scale[:, None, None], second=second / scale[None, :, None])
