# SPDX-License-Identifier: Apache-2.0
"""A loss of the caller's between outputs and those of the original: its value and its curvature."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slimrank._errors import GradientError, NonFiniteError, OptionError, SlimrankError
from slimrank._names import listed
from slimrank.calibrate._spread import matched_spread
from slimrank.forward import Picked

OwnLossFn = Callable[..., Tensor]
# Distance, in spreads of the outputs, at which the curvature is taken: about what compression changes. A loss
# with a kink (an absolute value) has no curvature at the original itself.
_DISTANCE = 0.1
# No single element goes farther than this, in spreads.
_MAX_DISTANCE = 0.5
# Steps of the Lanczos iteration; fewer where outputs have fewer elements. Curvatures with few distinct
# eigenvalues need as many steps as they have, others come close with these.
_STEPS = 8
# Rounding of float32 sums leaves about this much of a direction that is used up, relative to the curvature.
_USED_UP = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OwnLoss:
    """A loss of the caller's.

    Attributes:
        function: ``loss(outputs, original_outputs) -> (N,)``.
        spreads: spread of every output over the data, by path, in a shape that divides its samples where they
            are all of one shape.
        all_lost: mean loss of the original's outputs against those of other samples.
    """

    function: OwnLossFn
    spreads: Mapping[str, Tensor]
    all_lost: float = 1.0

    def per_sample(self, picked: Picked, reference: Picked, n_samples: int) -> Tensor:
        """What is lost against the original's outputs, which lose nothing: (N,) float32."""
        with torch.no_grad():
            least = _called(self.function, reference, reference, n_samples)
        return _called(self.function, picked, reference, n_samples, may_be_nan=True) - least

    def sampled(self, picked: Picked, generator: torch.Generator, n_samples: int) -> Tensor:
        """A scalar whose gradient has the curvature of the loss as second moment.

        Args:
            picked: outputs of the original, with gradient.
            generator: on the CPU.
            n_samples: N.

        Returns:
            Scalar float32: the sum over outputs of ``v * f``, with ``E[v v^T]`` the curvature at ``f``.

        Source: Lanczos' iteration for the square root of a matrix times a vector, Higham 2008, Functions of
            Matrices, section 13.2, doi:10.1137/1.9780898717778.
        """
        curvature = _Curvature(self, picked, n_samples)
        noise = torch.randn(curvature.shape, generator=generator).to(curvature.device)
        vectors = curvature.to_outputs(_root_times(curvature, noise))
        return torch.stack([(picked[path].float() * vectors[path]).sum() for path in picked]).sum()


def check_loss(loss: object, weights: object) -> None:
    """Refuses what cannot be called with two values, and weights beside a loss.

    Raises:
        OptionError: with what is allowed.
    """
    if loss is None:
        return
    if not callable(loss):
        raise OptionError(
            f"loss is a {type(loss).__name__}; give a function loss(outputs, original_outputs) of (N,) losses"
        )
    try:
        inspect.signature(loss).bind(None, None)
    except TypeError as error:
        raise OptionError(
            f"loss cannot be called with two values ({error}); give loss(outputs, original_outputs)"
        ) from error
    except ValueError:
        # Some built-in functions do not tell what they take; a trial shows it.
        pass
    if weights is not None:
        raise OptionError(
            "weights= and loss= are given; a loss of your own weighs outputs itself, so leave weights= out"
        )


def open_loss(function: OwnLossFn, picked: Picked, spreads: Mapping[str, Tensor], n_samples: int) -> OwnLoss:
    """Tries a loss of the caller's on outputs of the original.

    Args:
        function: of outputs and of the original's.
        picked: outputs of the original for one batch.
        spreads: spread of every output over the data.
        n_samples: N.

    Returns:
        The loss.

    Raises:
        OptionError: it fails, changes what it is given, does not return (N,) floats, or is a similarity.
        NonFiniteError: it returns nan or inf.
        GradientError: no gradient flows from it to any output, or it is the same whatever the outputs are.
    """
    loss = OwnLoss(function=function, spreads=spreads)
    copies = picked.changed(Tensor.clone)
    with torch.no_grad():
        _called(function, copies, copies, n_samples)
    if not all(torch.equal(copies[path], tensor) for path, tensor in picked.items()):
        raise OptionError(
            "loss= changes the outputs that it is given; do not work in place: a - b, not a.sub_(b)"
        )
    curvature = _Curvature(loss, picked, n_samples)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(curvature.shape, generator=generator).to(curvature.device)
    product = curvature.times(noise)
    if not bool(product.any()):
        raise GradientError(
            "loss= has no curvature: its gradient is the same whatever the outputs are; give a loss that "
            "grows with the distance from the original's outputs"
        )
    if float((product * noise).sum()) < 0:
        raise OptionError(
            "loss= is largest where the outputs are the original's, as a similarity is; return what is lost, "
            "e.g. 1 minus a cosine"
        )
    lost = 1.0
    if n_samples > 1 and all(len(tensor) == n_samples for tensor in picked.values()):
        others = picked.changed(lambda tensor: tensor.roll(1, 0))
        with torch.no_grad():
            lost = float(loss.per_sample(others, picked, n_samples).mean())
    return OwnLoss(function=function, spreads=spreads, all_lost=lost if 0 < lost < float("inf") else 1.0)


def _called(
    function: OwnLossFn, picked: Picked, reference: Picked, n_samples: int, *, may_be_nan: bool = False
) -> Tensor:
    """What a loss returns, as (N,) float32; its own errors are named as such."""
    try:
        values = function(picked.structure, reference.structure)
    except (SlimrankError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise OptionError(
            f"loss= failed ({type(error).__name__}: {error}); it is called with "
            f"{_structure_text(reference)}, twice: what outputs= picks of the model's and of the original's"
        ) from error
    return _checked(values, n_samples, may_be_nan=may_be_nan)


def _structure_text(picked: Picked) -> str:
    if isinstance(picked.structure, Tensor):
        return f"a tensor {list(picked.structure.shape)}"
    kind = f"a {type(picked.structure).__name__}"
    keys = map(str, picked.structure) if isinstance(picked.structure, Mapping) else ()
    return f"{kind} with {listed(keys)}" if keys else kind


def _checked(values: object, n_samples: int, *, may_be_nan: bool = False) -> Tensor:
    """What a loss returned, as (N,) float32."""
    shape = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
    if not isinstance(values, Tensor) or values.shape != (n_samples,):
        hint = ""
        if isinstance(values, Tensor) and values.ndim == 0:
            hint = "; leave the mean over samples out (of a loss of torch: reduction='none')"
        elif isinstance(values, Tensor) and values.ndim > 1 and len(values) == n_samples:
            hint = ", e.g. with .flatten(1).mean(1)"
        raise OptionError(
            f"loss= returned {shape} for {n_samples} samples; return one loss for each, a tensor "
            f"[{n_samples}]{hint}"
        )
    if not values.is_floating_point():
        raise OptionError(f"loss= returned {values.dtype}; return floating numbers")
    if not may_be_nan and not bool(values.isfinite().all()):
        raise NonFiniteError(
            "loss= returned nan or inf on outputs close to the original's; check where it divides or takes a "
            "root or a logarithm"
        )
    return values.float()


class _Curvature:
    """Second derivatives of a loss at the original's outputs, times vectors, in units of the spreads.

    Args:
        loss: the loss.
        picked: outputs of the original.
        n_samples: N.
    """

    def __init__(self, loss: OwnLoss, picked: Picked, n_samples: int) -> None:
        self._loss, self._n_samples = loss, n_samples
        self._reference = picked.changed(lambda tensor: tensor.detach())
        tensors = list(self._reference.values())
        # Samples are independent, so each has an iteration of its own; outputs with another first dimension
        # cannot be told apart by sample.
        self._rows = n_samples if all(len(tensor) == n_samples for tensor in tensors) else 1
        self._sizes = [tensor.numel() // self._rows for tensor in tensors]
        self._paths = list(self._reference)
        self._scales = [
            matched_spread(loss.spreads[path].to(tensor.device), tensor)
            .expand_as(tensor)
            .reshape(self._rows, -1)
            for path, tensor in self._reference.items()
        ]
        self.device = tensors[0].device

    @property
    def shape(self) -> tuple[int, int]:
        """Of the vectors: independent iterations, elements of each."""
        return self._rows, sum(self._sizes)

    def to_outputs(self, vectors: Tensor) -> dict[str, Tensor]:
        """Vectors in units of the spreads as gradients of the outputs, by path."""
        parts = vectors.split(self._sizes, 1)
        return {
            path: (part / scale).reshape(self._reference[path].shape)
            for path, part, scale in zip(self._paths, parts, self._scales, strict=True)
        }

    def times(self, vectors: Tensor) -> Tensor:
        """The curvature times vectors of unit length, by central differences of the gradient."""
        largest = vectors.abs().amax(1, keepdim=True).clamp_min(1e-30)
        norms = vectors.norm(dim=1, keepdim=True).clamp_min(1e-30)
        steps = torch.minimum(_DISTANCE * self.shape[1] ** 0.5 / norms, _MAX_DISTANCE / largest)
        return (self._gradient(steps * vectors) - self._gradient(-steps * vectors)) / (2 * steps)

    def _gradient(self, change: Tensor) -> Tensor:
        """Gradient of the summed loss, in units of the spreads, with outputs changed by so many of them."""
        shifts = {
            id(self._reference[path]): (part * scale).reshape(self._reference[path].shape)
            for path, part, scale in zip(self._paths, change.split(self._sizes, 1), self._scales, strict=True)
        }
        with torch.enable_grad():
            leaves = self._reference.changed(
                lambda tensor: (tensor + shifts[id(tensor)].to(tensor.dtype)).requires_grad_()
            )
            values = _called(self._loss.function, leaves, self._reference, self._n_samples)
            if not values.requires_grad:
                raise GradientError(
                    "no gradient flows from loss= to the outputs (it detaches them, or goes through an "
                    "argmax or numpy); use differentiable operations of torch"
                )
            tensors = [leaves[path] for path in self._paths]
            try:
                gradients = torch.autograd.grad(values.sum(), tensors, allow_unused=True)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                # Such as work in place on what the backward pass needs.
                raise GradientError(
                    f"the backward pass through loss= failed ({str(error).splitlines()[0]}); use "
                    "differentiable operations of torch, none in place"
                ) from error
        parts = [
            torch.zeros_like(scale) if gradient is None else gradient.float().reshape(self._rows, -1) * scale
            for gradient, scale in zip(gradients, self._scales, strict=True)
        ]
        return torch.cat(parts, 1)


def _root_times(curvature: _Curvature, noise: Tensor) -> Tensor:
    """The square root of the curvature times vectors; directions of negative curvature count as flat.

    Args:
        curvature: one for each row.
        noise: (B, D) float32.

    Returns:
        (B, D) float32.
    """
    norms = noise.norm(dim=1, keepdim=True).clamp_min(1e-30)
    basis = [noise / norms]
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    for _ in range(min(_STEPS, noise.shape[1])):
        product = curvature.times(basis[-1])
        diagonal.append((product * basis[-1]).sum(1))
        # Against all earlier vectors, twice: rounding would bring used directions back.
        for vector in basis * 2:
            product = product - (product * vector).sum(1, keepdim=True) * vector
        length = product.norm(dim=1)
        size = torch.stack(diagonal).abs().amax(0)
        is_new = length > _USED_UP * size
        beside.append(torch.where(is_new, length, torch.zeros_like(length)))
        if not bool(is_new.any()):
            break
        basis.append(product * (is_new / length.clamp_min(1e-30)).unsqueeze(1))
    count = len(diagonal)
    small = torch.diag_embed(torch.stack(diagonal, 1).double())
    if count > 1:
        off = torch.diag_embed(torch.stack(beside[: count - 1], 1).double(), offset=1)
        small = small + off + off.transpose(1, 2)
    values, vectors = torch.linalg.eigh(small.cpu())
    # The first column of the square root of the small matrix: (B, count)
    column = (vectors * values.clamp_min(0).sqrt().unsqueeze(1) * vectors[:, :1, :]).sum(2).float()
    stacked = torch.stack(basis[:count], 1)
    root: Tensor = norms * (column.to(noise.device).unsqueeze(2) * stacked).sum(1)
    return root
