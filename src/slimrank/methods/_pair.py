# SPDX-License-Identifier: Apache-2.0
"""Low-rank pairs: from a target to two factors, and their error at every rank."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from slimrank.cost import FORM_ROWS, MAX_GRAM_WIDTH, factor_taps
from slimrank.linalg import (
    RidgedRows,
    Split,
    SplitMoments,
    diagonal_blocks,
    fit_split,
    has_leading_directions,
    initial_first_factor,
    leading_directions,
    nested_errors,
    output_basis,
    project_pair,
    refine_split,
    roots_of,
    times_root,
    weighted_by,
)
from slimrank.methods._target import ClosedForm, SharedKernel, Target
from slimrank.records import Form, LayerSpec, Setting

# Above so many columns, products with moments are in float32: twice as fast, in half the memory, and with
# errors far below what the ridge changes. Decompositions stay in float64.
_EXACT_COLUMNS = 1024
# Rows per column up to which products with the rows are fewer than products with their moments.
_FEW_ROWS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pair:
    """Two factors of a layer.

    Of a convolution in G groups both factors have G groups, with R channels between them in each.

    Attributes:
        form: how the kernel is split.
        first: (G R, C_in / G, F) float64, of very large layers float32.
        second: (O, R, S), like it.
    """

    form: Form
    first: Tensor
    second: Tensor

    @property
    def rank(self) -> int:
        """Size between the factors."""
        return self.second.shape[1]

    @property
    def n_groups(self) -> int:
        """G."""
        return len(self.first) // self.rank

    @property
    def of_groups(self) -> tuple["Pair", ...]:
        """The pair of each group."""
        parts = zip(self.first.chunk(self.n_groups), self.second.chunk(self.n_groups), strict=True)
        return tuple(Pair(form=self.form, first=first, second=second) for first, second in parts)

    @property
    def setting(self) -> Setting:
        """What a plan says of it."""
        return Setting(method=FORM_ROWS[self.form].method, form=self.form, rank=self.rank)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The factors, in the order in which they are applied."""
        return self.first, self.second

    def weight(self, spec: LayerSpec) -> Tensor:
        """See ``effective_weight``."""
        return effective_weight(spec, self)

    def outputs(self, spec: LayerSpec, row: Tensor) -> Tensor:
        """Its outputs for one row of inputs, (D,) -> (O,) float64, without ``weight(spec)``."""
        if self.n_groups > 1:
            own, parts = _group_spec(spec), zip(self.of_groups, row.chunk(self.n_groups), strict=True)
            return torch.cat([pair.outputs(own, part) for pair, part in parts])
        split, columns = _arrangement(spec, self.form, row.device)
        inputs = row[columns].view(split.channels, split.first_taps, split.second_taps)
        inner = torch.einsum("pif,ifs->ps", self.first, inputs.to(self.first.dtype))
        return torch.einsum("ops,ps->o", self.second, inner).double()


def error_by_rank(spec: LayerSpec, form: Form, target: Target, *, limit: int | None = None) -> Tensor:
    """Error of a form at every rank, from one decomposition.

    Exact for ``linear`` and ``kxk_1x1``. For the other forms an upper bound on the ridged moments, which
    refinement lowers. Of a convolution in groups the sum of what each group loses at that rank.

    Args:
        spec: the layer.
        form: how the kernel is split.
        target: what to reproduce.
        limit: largest rank that is needed; None for all.

    Returns:
        (R + 1,) float64: entry r is ``1/2 tr((W - W_r)^T G (W - W_r) H)``; entry 0 is all.
    """
    if spec.groups > 1:
        own, parts = _group_spec(spec), _group_targets(spec, target)
        return torch.stack([error_by_rank(own, form, part, limit=limit) for part in parts]).sum(0)
    if FORM_ROWS[form].is_closed:
        return closed_form(target).errors[: None if limit is None else limit + 1]
    kernel = shared_kernel(spec, form, target)
    first = first_factors(kernel)[:limit]
    return nested_errors(kernel.weighted, kernel.goal, kernel.moment, first, kernel.split)


def true_error(target: Target, weight: Tensor) -> float:
    """Error of any weight instead of that of the target, on the un-ridged moments.

    Args:
        target: what to reproduce.
        weight: (O, D) float64.

    Returns:
        ``1/2 tr((W - W')^T G (W - W') H)``.
    """
    difference = weighted_by(target.root, target.dense - weight)
    return float(target.moments.diagonal_of(difference.to(_product_dtype(target))).sum() / 2)


def fit_pair(
    spec: LayerSpec, form: Form, rank: int, target: Target, *, alternations: int, start: Pair | None = None
) -> Pair:
    """Factors of one rank.

    Args:
        spec: the layer.
        form: how the kernel is split.
        rank: size between the factors.
        target: what to reproduce; it remembers its decompositions.
        alternations: refinement rounds at most, for forms without closed solution.
        start: a pair of this form and rank for a similar target, which spares a decomposition: forms without
            closed solution begin with its first factor. None begins anew.

    Returns:
        The pair, balanced.
    """
    if spec.groups > 1:
        own, parts = _group_spec(spec), _group_targets(spec, target)
        starts: Sequence[Pair | None] = (None,) * len(parts) if start is None else start.of_groups
        pairs = [
            fit_pair(own, form, rank, part, alternations=alternations, start=before)
            for part, before in zip(parts, starts, strict=True)
        ]
        return Pair(
            form=form,
            first=torch.cat([pair.first for pair in pairs]),
            second=torch.cat([pair.second for pair in pairs]),
        )
    if FORM_ROWS[form].is_closed:
        basis = _directions(target, rank, start)
        first, second = project_pair(target.dense, basis, rank, target.root, target.inverse_root)
        channels = spec.weight_shape[1]
        return _balanced(form, first.view(rank, channels, -1), second.unsqueeze(-1))
    kernel = shared_kernel(spec, form, target)
    goal, moment, split = kernel.goal, kernel.moment, kernel.split
    first = first_factors(kernel)[:rank] if start is None else start.first
    factors = fit_split(goal, moment, first, split)
    if alternations:
        factors = refine_split(goal, moment, factors, split, alternations=alternations)
    second = times_root(target.inverse_root, factors.second.flatten(1)).view_as(factors.second)
    return _balanced(form, factors.first, second)


def _group_spec(spec: LayerSpec) -> LayerSpec:
    """One group of a grouped convolution, as a layer of its own."""
    c_out, *others = spec.weight_shape
    return replace(spec, groups=1, weight_shape=(c_out // spec.groups, *others))


def _group_targets(spec: LayerSpec, target: Target) -> tuple[Target, ...]:
    """What the pair of each group shall reproduce: its block of the weight and of both metrics."""
    if target.by_group is None:
        target.by_group = tuple(
            _block_target(target, rows, columns)
            for rows, columns in diagonal_blocks(target.dense, spec.groups)
        )
    return target.by_group


def _block_target(target: Target, rows: Tensor, columns: Tensor) -> Target:
    root = target.root
    if root.ndim == 1:
        roots = root[rows], target.inverse_root[rows]
    else:
        # Outputs of a group alone count by their own block of G = R^T R.
        roots = roots_of(root[:, rows].T @ root[:, rows])
    return Target(
        dense=target.dense[rows][:, columns],
        moments=target.moments.block(columns),
        root=roots[0],
        inverse_root=roots[1],
        ridge=target.ridge,
    )


def _product_dtype(target: Target) -> torch.dtype:
    return torch.float32 if target.dense.shape[1] > _EXACT_COLUMNS else torch.float64


def _ridged(target: Target) -> SplitMoments:
    """H with its ridge: as rows where these are fewer than the columns, which takes fewer products."""
    moments, dtype = target.moments, _product_dtype(target)
    width = target.dense.shape[1]
    if moments.rows is None and moments.matrix is None and width > MAX_GRAM_WIDTH:
        # An identity as wide as this would not fit.
        return RidgedRows(rows=target.dense.new_zeros(0, width, dtype=dtype), ridge=1.0)
    if moments.rows is None or len(moments.rows) > _FEW_ROWS * target.dense.shape[1]:
        return moments.ridged(target.ridge, dtype)
    # A layer with constant inputs has no moments: the identity then stands for "weights alone".
    ridge = target.ridge * moments.mean_diagonal or 1.0
    return RidgedRows(rows=moments.rows.to(dtype) / moments.n_rows**0.5, ridge=ridge)


def closed_form(target: Target) -> ClosedForm:
    """Directions of the outputs, and the error of every rank of them; computed once."""
    if target.closed_form is None:
        basis, errors = output_basis(target.weighted, target.moments, ridge=target.ridge)
        target.closed_form = ClosedForm(basis=basis, errors=errors)
    return target.closed_form


def _directions(target: Target, rank: int, start: Pair | None) -> Tensor:
    """The first directions of the outputs, (O, R) with R of ``rank`` or more; alone where that is faster."""
    n_out, n_in = target.dense.shape
    if target.closed_form is not None or not has_leading_directions(n_out, n_in, rank):
        return closed_form(target).basis
    if target.leading is None or target.leading.shape[1] < rank:
        known = None if start is None else times_root(target.root, start.second.flatten(1).double())
        target.leading = leading_directions(
            target.dense, target.root, target.moments, ridge=target.ridge, rank=rank, start=known
        )
    return target.leading


def shared_kernel(spec: LayerSpec, form: Form, target: Target) -> SharedKernel:
    """What a form that shares the kernel is fitted with; computed once."""
    known = target.shared_kernels.get(form)
    if known is not None:
        return known
    split, columns = _arrangement(spec, form, target.dense.device)
    if target.ridged is None:
        target.ridged = _ridged(target)
    moment, weighted = target.ridged, target.weighted
    # Copies as large as the moments, so only where the order of the columns changes.
    if not bool((columns[1:] > columns[:-1]).all()):
        weighted = weighted.index_select(1, columns)
        if isinstance(moment, RidgedRows):
            moment = RidgedRows(rows=moment.rows.index_select(1, columns), ridge=moment.ridge)
        else:
            moment = moment.index_select(0, columns).index_select(1, columns)
    goal = weighted.to(moment.dtype) @ moment
    kernel = SharedKernel(split=split, moment=moment, weighted=weighted, goal=goal)
    target.shared_kernels[form] = kernel
    return kernel


def first_factors(kernel: SharedKernel) -> Tensor:
    """First factors for every rank, (R, C_in, F)."""
    if kernel.first is None:
        kernel.first = initial_first_factor(kernel.weighted, kernel.moment, kernel.split)
    return kernel.first


def effective_weight(spec: LayerSpec, pair: Pair) -> Tensor:
    """The weight that a pair amounts to: (O, D) float64, columns as in ``weight.flatten(1)``."""
    if pair.n_groups > 1:
        own = _group_spec(spec)
        joined: Tensor = torch.block_diag(*[effective_weight(own, part) for part in pair.of_groups])
        return joined
    product = torch.einsum("ops,pif->oifs", pair.second, pair.first).reshape(len(pair.second), -1)
    _, columns = _arrangement(spec, pair.form, product.device)
    weight = torch.empty_like(product)
    weight[:, columns] = product
    return weight


def _arrangement(spec: LayerSpec, form: Form, device: torch.device) -> tuple[Split, Tensor]:
    """How columns divide, and their order: by channel, tap of the first factor, tap of the second."""
    channels, kernel = spec.weight_shape[1], spec.kernel
    taken = FORM_ROWS[form].first_taps(len(kernel))
    first = [dim for dim, is_taken in enumerate(taken) if is_taken]
    second = [dim for dim, is_taken in enumerate(taken) if not is_taken]
    columns = torch.arange(channels * prod(kernel), device=device).view(channels, *kernel)
    ordered = columns.permute(0, *(1 + dim for dim in first + second)).reshape(-1)
    first_taps, second_taps = factor_taps(spec, form)
    return Split(channels=channels, first_taps=first_taps, second_taps=second_taps), ordered


def _balanced(form: Form, first: Tensor, second: Tensor) -> Pair:
    """The pair with equal norms of both factors per component: neither strains half precision or int8."""
    tiny = torch.finfo(first.dtype).tiny
    first_norms = first.flatten(1).norm(dim=1).clamp_min(tiny)
    second_norms = second.transpose(0, 1).flatten(1).norm(dim=1).clamp_min(tiny)
    scale = (second_norms / first_norms).sqrt()
    return Pair(form=form, first=first * scale[:, None, None], second=second / scale[None, :, None])
