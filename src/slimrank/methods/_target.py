# SPDX-License-Identifier: Apache-2.0
"""What a pair shall reproduce, and how its errors are weighted."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from slimrank.linalg import Moments, Split, SplitMoments, square_root, square_roots, weighted_by
from slimrank.records import Form

# Share of the mean eigenvalue that is added to each eigenvalue of the second moment of output gradients. More
# makes all directions of the outputs count alike, less trusts what few draws say about rare ones.
_GRADIENT_SHRINK = 0.1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ClosedForm:
    """Decomposition of the forms with a closed solution: see ``output_basis``."""

    basis: Tensor
    errors: Tensor


@dataclass(slots=True, kw_only=True, eq=False)
class SharedKernel:
    """What a form that shares the kernel is fitted with.

    Attributes:
        split: how columns divide.
        moment, weighted, goal: H, G^(1/2) W and their product, columns in the order of the form.
        first: first factors for every rank, see ``initial_first_factor``; None until they are needed.
    """

    split: Split
    moment: SplitMoments
    weighted: Tensor
    goal: Tensor
    first: Tensor | None = None


@dataclass(slots=True, kw_only=True, eq=False)
class Target:
    """What a pair shall reproduce, and how its errors are weighted; it remembers its decompositions.

    Attributes:
        dense: (O, D) float64, of very large layers float32: the weight to approximate.
        moments: second moments H of the D inputs.
        root: (O, O) float64, G^(1/2); (O,) where it is diagonal.
        inverse_root: like it, G^(-1/2).
        ridge: share of the mean diagonal of H that is added to H for the fit.
        closed_form, shared_kernels, ridged: decompositions so far, of use to every rank; None or without an
            entry until the first fit needs them.
        leading: the first directions of the outputs, as far as a fit of the closed form needed them alone.
        by_group: of a convolution in groups, the target of each group, which has the decompositions; None
            until the first fit needs them.
    """

    dense: Tensor
    moments: Moments
    root: Tensor
    inverse_root: Tensor
    ridge: float
    closed_form: ClosedForm | None = field(default=None, init=False)
    shared_kernels: dict[Form, SharedKernel] = field(default_factory=dict, init=False)
    ridged: SplitMoments | None = field(default=None, init=False)
    leading: Tensor | None = field(default=None, init=False)
    by_group: "tuple[Target, ...] | None" = field(default=None, init=False)

    @property
    def weighted(self) -> Tensor:
        """(O, D): G^(1/2) W, dtype of the weight."""
        return weighted_by(self.root, self.dense)


def metric_roots(gram: Tensor | None, n_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Roots of the output metric; identities where there is none.

    Args:
        gram: (O, O) second moment of output gradients; (O,), its diagonal, where it is very wide; or None.
        n_out: O.
        device: where to compute.

    Returns:
        G^(1/2) and G^(-1/2): float64, (O, O), or (O,) where they are diagonal.
    """
    if gram is None:
        ones = torch.ones(n_out, dtype=torch.float64, device=device)
        return ones, ones
    return square_roots(gram.double().to(device), shrink=_GRADIENT_SHRINK)


def metric_root(gram: Tensor | None, n_out: int, device: torch.device) -> Tensor:
    """The first of ``metric_roots`` alone, which takes less."""
    if gram is None:
        return torch.ones(n_out, dtype=torch.float64, device=device)
    return square_root(gram.double().to(device), shrink=_GRADIENT_SHRINK)


def restricted_gram(gram: Tensor, outputs: Tensor) -> Tensor:
    """Second moment of the gradients of some outputs.

    Args:
        gram: (O, O), or (O,), its diagonal.
        outputs: (O',) int64.

    Returns:
        (O', O'), or (O',).
    """
    outputs = outputs.to(gram.device)
    return gram[outputs] if gram.ndim == 1 else gram[outputs][:, outputs]


def weights_target(weight: Tensor) -> Target:
    """A target without data on its inputs and outputs: plain, unweighted decompositions.

    Args:
        weight: (O, D) float64.

    Returns:
        The target, with identities for moments and metric.
    """
    root, inverse_root = metric_roots(None, len(weight), weight.device)
    moments = Moments.identity(weight.shape[1], weight.device)
    # A ridge must be above 0; an identity needs no more.
    return Target(dense=weight, moments=moments, root=root, inverse_root=inverse_root, ridge=1e-12)
