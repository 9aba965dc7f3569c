# SPDX-License-Identifier: Apache-2.0
"""Pairs of layers in a basis in which the values between them round well; what they compute stays."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from slimrank.deploy._difference import relative_difference
from slimrank.deploy._named_model import output_tensors
from slimrank.forward import Batch, fixed_seed, plain_attention, run, watch_modules
from slimrank.surgery import remember

_Factor = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
_Pairs = Mapping[str, tuple[_Factor, _Factor]]
# Eigenvalues of the moments, singular values of what reaches the output, and ranges that count, over the
# largest: less would need factors that float32 cannot hold.
_LEAST_MOMENT, _LEAST_OUTPUT, _LEAST_RANGE = 1e-6, 1e-3, 1e-3
# Largest difference of an output, relative to its largest value, that rounding in another basis may bring.
_TOLERANCE = 1e-4


def balance_pairs(model: nn.Module, batches: Sequence[Batch]) -> list[str]:
    """Changes the basis between the factors of every pair (in place), so that one scale fits all channels.

    Rounding with one step for the whole map between adds noise of one size to every channel, and the second
    factor passes it on. Of all bases with the same product, the one with the least noise at the output has
    factors that share what they do: for the second factor W and the second moment C between, with
    W C^(1/2) = U S V^T, the factors become S^(1/2) V^T C^(-1/2) and U S^(1/2). They are turned so that all
    channels have about the same moment; then each channel is scaled to the same range.

    Args:
        model: a private copy, in eval mode.
        batches: real inputs.

    Returns:
        Names of the pairs; none where the outputs would not stay as they are.
    """
    pairs = dict(_pairs(model))
    if not pairs:
        return []
    before = _outputs(model, batches[0])
    go_back = remember(model)
    moments = _seen(model, pairs, batches, lambda rows: rows.T @ rows, torch.add)
    for name, moment in moments.items():
        _change_basis(pairs[name], *_basis(pairs[name][1], moment))
    ranges = _seen(model, pairs, batches, lambda rows: rows.abs().amax(0), torch.maximum)
    for name, range_ in ranges.items():
        scale = range_.max() / range_.clamp_min(_LEAST_RANGE * range_.max())
        _change_basis(pairs[name], scale.diag(), scale.reciprocal().diag())
    after = _outputs(model, batches[0])
    differences = [relative_difference(a, b) for a, b in zip(before, after, strict=True)]
    # Not "above": nan would pass.
    if not all(difference <= _TOLERANCE for difference in differences):
        go_back()
        return []
    return list(moments)


def _pairs(model: nn.Module) -> Iterator[tuple[str, tuple[_Factor, _Factor]]]:
    """Two layers of one kind, one after the other with nothing between, that nothing else uses."""
    users = Counter(
        id(value)
        for _, module in model.named_modules(remove_duplicate=False)
        for value in (module, *module.parameters(recurse=False))
    )
    for name, module in model.named_modules():
        if type(module) is not nn.Sequential or len(module) != 2:
            continue
        first, second = module
        if not isinstance(first, _Factor) or type(second) is not type(first):
            continue
        if type(first) not in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d):
            continue
        used = (module, first, second, *module.parameters())
        is_plain = all(
            getattr(factor, "groups", 1) == 1
            and factor.weight.dtype == torch.float32
            and not factor._forward_hooks
            and not factor._forward_pre_hooks
            for factor in (first, second)
        )
        if is_plain and all(users[id(value)] == 1 for value in used):
            yield name, (first, second)


def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    with torch.no_grad(), plain_attention(), fixed_seed(model):
        return [tensor.clone() for _, tensor in output_tensors(run(model, batch))]


def _seen(
    model: nn.Module,
    pairs: _Pairs,
    batches: Sequence[Batch],
    read: Callable[[Tensor], Tensor],
    join: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """What is read of the values between factors, in rows of channels, over all batches; not of zeros."""
    found: dict[str, Tensor] = {}

    def leave(name: str, args: object, kwargs: object, output: object) -> None:
        del args, kwargs
        if isinstance(output, Tensor):
            rows = output if isinstance(pairs[name][0], nn.Linear) else output.movedim(1, -1)
            new = read(rows.reshape(-1, rows.shape[-1]).double())
            found[name] = join(found[name], new) if name in found else new

    watched = watch_modules([(name, first) for name, (first, _) in pairs.items()], leave=leave)
    with torch.no_grad(), plain_attention(), fixed_seed(model), watched:
        for batch in batches:
            run(model, batch)
    return {name: value for name, value in found.items() if value.isfinite().all() and value.any()}


def _basis(second: _Factor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """The change of basis between two factors, and its inverse.

    Args:
        second: the second factor, R channels in.
        moment: (R, R) float64, of what comes in.

    Returns:
        (R, R) each: what multiplies the values, and what multiplies the second factor from the right.
    """
    n_channels = len(moment)
    weight = second.weight.detach().double().movedim(1, -1).reshape(-1, n_channels)
    values, vectors = torch.linalg.eigh(moment)
    values = values.clamp_min(_LEAST_MOMENT * values.max()).sqrt()
    root, inverse = (vectors * values) @ vectors.T, (vectors / values) @ vectors.T
    squares, vectors = torch.linalg.eigh(root @ (weight.T @ weight) @ root)
    singular = squares.clamp_min(_LEAST_OUTPUT**2 * squares.max().clamp_min(1e-300)).pow(0.25)
    turn = _even_turn(n_channels)
    return turn @ (singular[:, None] * (vectors.T @ inverse)), (root @ vectors / singular) @ turn.T


def _even_turn(size: int) -> Tensor:
    """An orthogonal matrix whose rows spread over all columns: Hartley's, (R, R) float64."""
    index = torch.arange(size, dtype=torch.float64)
    angles = 2 * torch.pi * torch.outer(index, index) / size
    turn: Tensor = (angles.cos() + angles.sin()) / size**0.5
    return turn


def _change_basis(pair: tuple[_Factor, _Factor], forth: Tensor, back: Tensor) -> None:
    """Multiplies the values between two factors, and undoes it in the second (in place, new tensors)."""
    first, second = pair
    weight = torch.tensordot(forth, first.weight.detach().double(), dims=1)
    first.weight = nn.Parameter(weight.float(), requires_grad=False)
    if first.bias is not None:
        first.bias = nn.Parameter((forth @ first.bias.detach().double()).float(), requires_grad=False)
    weight = (second.weight.detach().double().movedim(1, -1) @ back).movedim(-1, 1)
    second.weight = nn.Parameter(weight.float().contiguous(), requires_grad=False)
