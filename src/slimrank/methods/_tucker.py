# SPDX-License-Identifier: Apache-2.0
"""Tucker-2: three factors of a convolution, and which of its two ranks go together."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from slimrank.cost import FORM_ROWS, max_rank, pair_costs, ranks_in_range
from slimrank.linalg import Split, fit_tucker, times_root, tucker_errors
from slimrank.methods._pair import closed_form, first_factors, shared_kernel
from slimrank.methods._target import Target
from slimrank.records import Form, LayerSpec, Setting

# The pair that splits the kernel as the first two factors do: it shares their decompositions.
_INNER: Form = "1x1_kxk"
# Both ranks are multiples of these where the second one is, so that rounding costs little.
_ALIGNMENTS = (16, 8, 4, 2, 1)
# Keeps logarithms of errors finite.
_TINY = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Triple:
    """Three factors of a layer.

    Attributes:
        form: how the kernel is split.
        first: (P, C_in) float64, of very large layers float32.
        core: (R, P, S), like it; S taps.
        last: (O, R), like it.
    """

    form: Form
    first: Tensor
    core: Tensor
    last: Tensor

    @property
    def setting(self) -> Setting:
        """What a plan says of it."""
        rank, rank_in = self.core.shape[:2]
        return Setting(method=FORM_ROWS[self.form].method, form=self.form, rank=rank, rank_in=rank_in)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The factors, in the order in which they are applied."""
        return self.first, self.core, self.last

    def weight(self, spec: LayerSpec) -> Tensor:
        """The weight that they amount to: (O, D), columns as in ``weight.flatten(1)``."""
        kernel = torch.einsum("rps,pi->ris", self.core, self.first)
        return self.last @ kernel.reshape(len(kernel), prod(spec.weight_shape[1:]))

    def outputs(self, spec: LayerSpec, row: Tensor) -> Tensor:
        """Their outputs for one row of inputs, (D,) -> (O,) float64, without ``weight(spec)``."""
        inner = self.first @ row.view(spec.weight_shape[1], -1).to(self.first.dtype)
        return (self.last @ torch.einsum("rps,ps->r", self.core, inner)).double()


def triple_of(setting: Setting, tensors: Sequence[Tensor]) -> Triple:
    """Factors from their tensors."""
    first, core, last = tensors
    return Triple(form=setting.form, first=first, core=core, last=last)


def error_by_second_rank(spec: LayerSpec, form: Form, target: Target, *, limit: int | None = None) -> Tensor:
    """Error at every rank of the outputs, where the inputs keep theirs: see ``rank_path``.

    Args:
        spec: the layer.
        form: how the kernel is split.
        target: what to reproduce.
        limit: largest rank that is needed; None for all.

    Returns:
        (R + 1,) float64; entry 0 is the error without the layer.
    """
    del spec, form
    return closed_form(target).errors[: None if limit is None else limit + 1]


def rank_path(
    spec: LayerSpec, form: Form, target: Target
) -> tuple[NDArray[np.int64], NDArray[np.int64], Tensor]:
    """One rank of the inputs for each rank of the outputs: the pair with the least error for what it costs.

    Args:
        spec: the layer.
        form: how the kernel is split.
        target: what to reproduce; it remembers its decompositions.

    Returns:
        ``ranks`` (R,) int64, 1 to the highest; ``ranks_in`` (R,) int64, never falling; (R,) float64 errors,
        an upper bound on the ridged moments. Where a rank is a multiple of 16, 8, 4 or 2, so is the other, as
        far as the layer has one.
    """
    kernel, top = shared_kernel(spec, _INNER, target), max_rank(spec, form)
    table = tucker_errors(
        kernel.weighted,
        kernel.goal,
        kernel.moment,
        first_factors(kernel),
        closed_form(target).basis[:, :top],
        kernel.split,
    )
    errors = table.cpu().numpy()
    ranks = np.arange(1, errors.shape[1] + 1, dtype=np.int64)
    low, high = ranks_in_range(spec, form, ranks)
    before = np.arange(1, len(errors) + 1, dtype=np.int64)[:, None]
    macs, params = pair_costs(spec, form, ranks[None], before, has_bias=False)
    excess = _excess(errors, macs if macs.any() else params)
    excess[(before < low) | (before > high)] = np.inf
    ranks_in = _path_along(excess, low, np.minimum(high, len(errors)))
    return ranks, ranks_in, table[torch.from_numpy(ranks_in - 1), torch.from_numpy(ranks - 1)]


def _excess(errors: NDArray[np.float64], costs: NDArray[np.int64]) -> NDArray[np.float64]:
    """By how much each error is above the least one of what costs no more: 0 where nothing is better."""
    logs = np.log(np.maximum(errors, _TINY * max(float(errors.max()), _TINY)))
    order = np.argsort(costs, axis=None, kind="stable")
    least = np.empty(errors.size)
    least[order] = np.minimum.accumulate(logs.ravel()[order])
    excess: NDArray[np.float64] = logs - least.reshape(errors.shape)
    return excess


def _path_along(
    excess: NDArray[np.float64], low: NDArray[np.int64], high: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The rank of the inputs with the least excess at each rank of the outputs, never falling.

    Ranks that are multiples of 16 come first; the finer ones stay between those around them.
    """
    chosen = np.zeros(excess.shape[1], dtype=np.int64)
    for alignment in _ALIGNMENTS:
        for index in range(alignment - 1, len(chosen), alignment):
            if chosen[index]:
                continue
            behind = chosen[index:][chosen[index:] > 0]
            least = max(int(low[index]), int(chosen[:index].max(initial=1)))
            most = min(int(high[index]), int(behind[0]) if len(behind) else len(excess))
            options = np.arange(-(-least // alignment) * alignment, most + 1, alignment)
            if len(options):
                chosen[index] = options[excess[options - 1, index].argmin()]
    return chosen


def fit_triple(
    spec: LayerSpec, setting: Setting, target: Target, *, alternations: int, start: Triple | None = None
) -> Triple:
    """Factors of two ranks.

    Args:
        spec: the layer.
        setting: form and ranks.
        target: what to reproduce; it remembers its decompositions.
        alternations: refinement rounds at most.
        start: factors of this setting for a similar target, whose first one is taken to begin with.

    Returns:
        The factors, balanced.
    """
    rank_in = setting.rank_in or setting.rank
    kernel = shared_kernel(spec, _INNER, target)
    split = Split(channels=spec.weight_shape[1], first_taps=1, second_taps=prod(spec.kernel))
    fitted = fit_tucker(
        kernel.weighted,
        kernel.goal,
        kernel.moment,
        closed_form(target).basis[:, : setting.rank],
        rank_in,
        split,
        alternations=alternations,
        start=None if start is None else start.first.double(),
    )
    dtype = target.dense.dtype
    last = times_root(target.inverse_root, fitted.last)
    return _balanced(setting.form, fitted.first.to(dtype), fitted.core.to(dtype), last.to(dtype))


def _balanced(form: Form, first: Tensor, core: Tensor, last: Tensor) -> Triple:
    """Factors with equal norms on both sides of each map between: none strains half precision or int8."""
    tiny = torch.finfo(first.dtype).tiny
    # The outputs of the core first: what then happens to its inputs multiplies all of these alike.
    scale_out = (last.norm(dim=0).clamp_min(tiny) / core.flatten(1).norm(dim=1).clamp_min(tiny)).sqrt()
    core, last = core * scale_out[:, None, None], last / scale_out
    before = core.transpose(0, 1).flatten(1).norm(dim=1).clamp_min(tiny)
    scale_in = (before / first.norm(dim=1).clamp_min(tiny)).sqrt()
    first, core = first * scale_in[:, None], core / scale_in[None, :, None]
    return Triple(form=form, first=first.contiguous(), core=core.contiguous(), last=last.contiguous())
