# SPDX-License-Identifier: Apache-2.0
"""Attention that takes its scale from the width of a head: what it computes, and who makes its queries."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from slimrank.forward import Batch, call, named_tensors
from slimrank.records import AxisUnits, ChannelMap

_ATTENTION = functional.scaled_dot_product_attention
_PRODUCTS: tuple[object, ...] = (
    *(torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm, torch.einsum, _ATTENTION),
)
# Queries and keys at so many positions are multiplied at most: by their scores heads are told apart.
_POSITIONS = 8
# Heads of the slimmed model that are looked for at most: each is compared with all of the masked one.
_HEADS = 256
# All subsets of the modules that make a factor are tried, 63 at most. No projection takes more modules.
_MOST_MODULES = 6
# By how much the shares of modules may miss 1: float32 gradients, summed over whole tensors.
_TOLERANCE = 1e-3
# Scores count as unchanged if they differ by less than this part of what a wrong scale would change.
_CLOSE = 0.25
# Or by less than so many roundings of the dtype, where the width has hardly changed.
_EPS_FACTOR = 8
# How far the direction of a derivative lies off the factor itself, as a part of the mean absolute value.
_SHAKE = 0.1


@dataclass(frozen=True, slots=True, eq=False)
class AttentionScores:
    """Some scores of an attention that was told no scale.

    Attributes:
        width: by whose square root they are divided.
        values: (heads, pairs of positions), of the first sample.
    """

    width: int
    values: Tensor


class SeenScores(TorchFunctionMode):
    """Sees the scores of torch's attention where it takes its scale from the width."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[AttentionScores] = []

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Notes the scores; runs everything as it is."""
        kwargs = kwargs or {}
        if func is _ATTENTION and kwargs.get("scale") is None:
            query, key, *_ = _factors(func, args, kwargs)
            if query.numel() and key.numel() and not query.is_nested:
                self.seen.append(_some_scores(query.detach(), key.detach()))
        return func(*args, **kwargs)


def is_made_up_for(before: AttentionScores, after: AttentionScores) -> bool:
    """Whether scores stay what they are though they are divided by another number.

    Args:
        before: of the masked model.
        after: of the slimmed model, which may have fewer heads.

    Returns:
        Whether every head has scores that one before has, far closer than another scale would put them.
    """
    if before.values.shape[1] != after.values.shape[1]:
        return False
    nearest = torch.cdist(after.values[:_HEADS].double(), before.values.double(), p=torch.inf).amin(1)
    lost = float(nearest.max() / before.values.abs().max().clamp(min=1e-30))
    missing = abs(1 - math.sqrt(after.width / before.width))
    return lost <= max(missing * _CLOSE, _EPS_FACTOR * torch.finfo(before.values.dtype).eps)


@dataclass(frozen=True, slots=True, eq=False)
class _Factor:
    """What makes one factor of a product.

    Attributes:
        shares: by tensor, how much of the factor goes in proportion with it; together 1 where the factor is
            linear in all of them.
        touched: by tensor, which indices of each of its dimensions the factor depends on, as yes or no.
    """

    shares: Mapping[str, float]
    touched: Mapping[str, Sequence[Tensor]]

    def indices(self, tensor: str, axis: AxisUnits) -> set[int]:
        """Of a dimension, those that the factor depends on and that hold a unit."""
        if tensor not in self.touched:
            return set()
        return {i for i in self.touched[tensor][axis.dim].nonzero().flatten().tolist() if axis.units[i] != -1}


@dataclass(frozen=True, slots=True, eq=False)
class QueryKeyProduct:
    """A product of two activations: of queries and keys, as far as is known."""

    query: _Factor
    key: _Factor


def read_products(model: nn.Module, sample: Batch, channels: ChannelMap) -> tuple[QueryKeyProduct, ...]:
    """Products of two activations, and what of the model makes their factors.

    Args:
        model: a private copy whose parameters ask for gradients.
        sample: for one forward.
        channels: of the model.

    Returns:
        The products whose factors both depend on what makes groups that are summed over; what comes through
        another product does not count.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    makers = {
        tensor.name: named[tensor.name]
        for tensor in channels.tensors.values()
        if tensor.name in named
        and any(axis.role == "output" and channels.groups[axis.group].is_inner for axis in tensor.axes)
    }
    reader = _Reader(makers, [*named.values(), *model.buffers()])
    with torch.enable_grad(), reader:
        call(model, sample)
    return tuple(reader.products)


def with_queries(channels: ChannelMap, group: str, products: Sequence[QueryKeyProduct]) -> ChannelMap | None:
    """The map that scales queries where attention takes its scale from the size of a group.

    Args:
        channels: of the model.
        group: one that is summed over.
        products: of the model.

    Returns:
        The map; None where nothing tells queries from keys, or where they are scaled already.
    """
    makers = _makers_of(channels, group)
    queries: dict[str, set[int]] = {}
    for product in products:
        found = _queries_of(product, makers)
        if found is None:
            return None
        for name, indices in found.items():
            queries.setdefault(name, set()).update(indices)
    return _marked(channels, makers, queries)


def _makers_of(channels: ChannelMap, group: str) -> Mapping[str, AxisUnits]:
    """By tensor, the dimension that makes a group; the first one where a tensor has several."""
    return {
        tensor.name: axis
        for tensor in channels.tensors.values()
        # The last one that is written stays.
        for axis in reversed(tensor.axes)
        if axis.group == group and axis.role == "output"
    }


def _queries_of(product: QueryKeyProduct, makers: Mapping[str, AxisUnits]) -> Mapping[str, set[int]] | None:
    """Which indices of a group's makers make the queries of a product.

    Args:
        product: of two activations.
        makers: by tensor, the dimension that makes the group.

    Returns:
        Indices by tensor; none where the group does not make both factors. None where nothing tells queries
        from keys, or where no multiple of the queries can be had from these tensors.
    """
    of_query = {name: product.query.indices(name, axis) for name, axis in makers.items()}
    of_key = {name: product.key.indices(name, axis) for name, axis in makers.items()}
    if not any(of_query.values()) or not any(of_key.values()):
        return {}
    if any(of_query[name] & of_key[name] for name in makers):
        return None
    scaled = _linear(product.query, [name for name, indices in of_query.items() if indices])
    # Where some units show nothing, a gate may be closed on these samples alone.
    if not scaled or not all(_holds_alike(makers[name], of_query[name]) for name in scaled):
        return None
    return {name: of_query[name] for name in scaled}


def _marked(
    channels: ChannelMap, makers: Mapping[str, AxisUnits], queries: Mapping[str, set[int]]
) -> ChannelMap | None:
    """The map with these indices as queries; None where it says so already, or where there are none."""
    marked = {
        name: replace(makers[name], queries=tuple(sorted(indices))) for name, indices in queries.items()
    }
    if all(axis == makers[name] for name, axis in marked.items()):
        return None
    tensors = dict(channels.tensors)
    for name, axis in marked.items():
        # By identity: another dimension of the tensor may hold the same units.
        axes = tuple(axis if other is makers[name] else other for other in tensors[name].axes)
        tensors[name] = replace(tensors[name], axes=axes)
    return replace(channels, tensors=tensors)


class _Reader(TorchFunctionMode):
    """Reads off the way back what makes the factors of every product, one product at a time."""

    def __init__(self, makers: Mapping[str, Tensor], stored: Sequence[Tensor]) -> None:
        super().__init__()
        self.products: list[QueryKeyProduct] = []
        self._makers = makers
        self._stored = frozenset(map(id, stored))

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Runs everything as it is; whatever follows knows nothing of what came before a product."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in _PRODUCTS or not isinstance(result, Tensor):
            return result
        factors = _factors(func, args, kwargs)
        if len(factors) < 2 or any(self._is_stored(factor) for factor in factors[:2]):
            # A layer by another name.
            return result
        product = QueryKeyProduct(*map(self._factor, factors[:2]))
        if product.query.touched and product.key.touched:
            self.products.append(product)
        return result.detach()

    def _is_stored(self, tensor: Tensor) -> bool:
        """Whether a tensor is one of the model, or a view of it."""
        return id(tensor if tensor._base is None else tensor._base) in self._stored

    def _factor(self, factor: Tensor) -> _Factor:
        if not factor.requires_grad or not self._makers:
            return _Factor({}, {})
        values = factor.detach()
        # Mostly along the factor itself, so that shares are steady; a little off, so that zeros show too.
        direction = values + _SHAKE * values.abs().mean() * torch.randn_like(values)
        found = torch.autograd.grad(
            factor, list(self._makers.values()), direction, retain_graph=True, allow_unused=True
        )
        grads = {name: grad for name, grad in zip(self._makers, found, strict=True) if grad is not None}
        total = float((values.double() * direction.double()).sum())
        return _Factor(
            shares={
                name: float((grad.double() * self._makers[name].detach().double()).sum()) / (total or 1.0)
                for name, grad in grads.items()
            },
            touched={name: _touched(grad) for name, grad in grads.items() if grad.any()},
        )


def _linear(factor: _Factor, names: Sequence[str]) -> tuple[str, ...]:
    """Tensors of the most modules that the factor is linear in together; () for none.

    Multiplied by a number, they multiply the factor by it (Euler's theorem: then their shares sum to 1).
    A module goes as a whole, so that what it gives is multiplied as well.
    """
    owners = dict.fromkeys(name.rpartition(".")[0] for name in names)
    if len(owners) > _MOST_MODULES:
        return ()
    for count in range(len(owners), 0, -1):
        for chosen in combinations(owners, count):
            chosen_names = tuple(name for name in names if name.rpartition(".")[0] in chosen)
            if abs(sum(factor.shares[name] for name in chosen_names) - 1) < _TOLERANCE:
                return chosen_names
    return ()


def _holds_alike(axis: AxisUnits, indices: Iterable[int]) -> bool:
    """Whether indices hold every unit equally often."""
    counts = Counter(axis.units[index] for index in indices)
    return len(set(counts.values())) == 1 and counts.keys() == set(axis.units) - {-1}


def _touched(grad: Tensor) -> list[Tensor]:
    """Which indices of each dimension hold anything but zeros."""
    some = grad != 0
    return [some.movedim(dim, 0).flatten(1).any(1) for dim in range(grad.ndim)] if grad.ndim > 1 else [some]


def _factors(func: object, args: Sequence[object], kwargs: Mapping[str, object]) -> list[Tensor]:
    """The factors of a product; of attention queries and keys first."""
    if func is _ATTENTION:
        args = [*args, *(kwargs[name] for name in ("query", "key") if name in kwargs)]
    return [tensor for _, tensor in named_tensors([*args, *kwargs.values()])]


def _some_scores(query: Tensor, key: Tensor) -> AttentionScores:
    """Scores at some positions, of the first sample."""
    first = [tensor.flatten(0, -4)[0] if tensor.ndim > 3 else tensor for tensor in (query, key)]
    few, others = (tensor[..., :: -(-tensor.shape[-2] // _POSITIONS), :].double() for tensor in first)
    if few.ndim == others.ndim > 2 and len(few) > len(others):
        # Several heads of queries may read one of keys.
        others = others.repeat_interleave(len(few) // len(others), 0)
    scores = few @ others.mT / query.shape[-1] ** 0.5
    values = scores.flatten(-2).reshape(-1, scores.shape[-2] * scores.shape[-1])
    return AttentionScores(query.shape[-1], values.to(query.dtype))
