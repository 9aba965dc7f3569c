# SPDX-License-Identifier: Apache-2.0
"""Counted cost of a model: what torch's own flop counter sees, and kernels that it has no formula for."""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slimrank.forward import Batch, SingleSums, run
from slimrank.records import Cost

_Shape = tuple[int, ...]


def count_cost(model: nn.Module, sample: Batch) -> Cost:
    """Counted cost of a model.

    Args:
        model: in eval mode.
        sample: one sample.

    Returns:
        MACs of one forward (torch's flop counter / 2, and what einsum sums over a single index), params
        (shared tensors once), bytes.
    """
    return count_by_module(model, sample)[0]


def count_by_module(model: nn.Module, sample: Batch) -> tuple[Cost, Mapping[str, int], tuple[str, ...]]:
    """Counted cost of a model, the MACs of each of its modules, and what could not be counted.

    Args:
        model: in eval mode.
        sample: one sample.

    Returns:
        The cost; MACs by dotted name, the same for every name that a module has (modules without any are left
        out); kernels that ran and may multiply, but have no formula ("aten.miopen_rnn"), sorted.
    """
    counter = _Counter()
    with _trainable_by_nobody(model), torch.no_grad(), counter, SingleSums(counter.note_product):
        run(model, sample)
    counts = {name: sum(by_kernel.values()) // 2 for name, by_kernel in counter.get_flop_counts().items()}
    names: defaultdict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    by_module = {}
    for names_of_module in names.values():
        # Of the names of a module under two parents, the counter takes one, and not always the first.
        macs = sum(counts.get(f"{type(model).__name__}.{name}", 0) for name in names_of_module)
        by_module.update({name: macs for name in names_of_module if macs})
    params, n_bytes = stored(model)
    cost = Cost(macs=counter.get_total_flops() // 2, params=params, bytes=n_bytes)
    return cost, by_module, tuple(sorted(counter.uncounted))


@contextlib.contextmanager
def _trainable_by_nobody(model: nn.Module) -> Iterator[None]:
    """No ``requires_grad``: torch's counter hooks inputs that have it, and fails on views of parameters."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad = False
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad = True


def stored(model: nn.Module) -> tuple[int, int]:
    """Stored numbers of a model, shared tensors once, and their bytes."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() * p.element_size() for p in parameters)


class _Counter(FlopCounterMode):
    """Torch's counter, which also remembers what it passed over."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_formulas())
        self.uncounted: set[str] = set()

    def note_product(self, _result: Tensor, macs: int) -> None:
        """Counts a product that runs as no kernel of the table, for all modules that run now."""
        for name in set(self.mod_tracker.parents):
            self.flop_counts[name][torch.ops.aten.einsum] += 2 * macs

    def _count_flops(
        self, func_packet: object, out: object, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> object:
        room, _, kernel = str(func_packet).partition(".")
        if func_packet not in self.flop_registry and (
            kernel in _NO_FORMULA if room == "aten" else kernel and room not in _NO_PRODUCTS
        ):
            self.uncounted.add(str(func_packet))
        return super()._count_flops(func_packet, out, args, kwargs)  # type: ignore[no-untyped-call]


# Kernels of torch that multiply: fused layers, and those of other devices and number formats.
_NO_FORMULA = frozenset(
    {
        "_native_multi_head_attention",
        "_transformer_encoder_layer_fwd",
        "_triton_multi_head_attention",
        "_lstm_mps",
        "miopen_rnn",
        "quantized_lstm",
        "quantized_gru",
        "mkldnn_linear",
        "_scaled_grouped_mm",
        "_weight_int4pack_mm",
        "_weight_int8pack_mm",
        "_sparse_semi_structured_linear",
    }
)
# Operators outside of aten come from other libraries, and may multiply; these are torch's own and do not.
_NO_PRODUCTS = frozenset({"prim", "prims", "profiler", "c10d", "_c10d_functional"})


def _formulas() -> dict[object, Callable[..., int]]:
    """FLOPs (2 for each MAC) of the shapes of a kernel's arguments, for the kernels that exist here."""
    by_name: dict[str, Callable[..., int]] = {
        "aten._scaled_dot_product_flash_attention_for_cpu": _attention,
        "aten.mkldnn_rnn_layer": _rnn_layer,
        "aten._cudnn_rnn": _rnn,
        "aten._grouped_mm": _grouped_mm,
        # Where transformers cannot use torch's; the same arguments.
        "transformers.grouped_mm_fallback": _grouped_mm,
        "aten._trilinear": _trilinear,
        "aten.mv": _inner,
        "aten.dot": _inner,
        "aten.vdot": _inner,
        "aten.addmv": _added_product,
        "aten.addbmm": _added_product,
        "aten._addmm_activation": _added_product,
        "aten._int_mm": _grouped_mm,
    }
    found: dict[object, Callable[..., int]] = {}
    for name, formula in by_name.items():
        library, _, kernel = name.partition(".")
        packet = getattr(getattr(torch.ops, library), kernel, None)
        if packet is not None:
            found[packet] = formula
    return found


def _attention(query: _Shape, key: _Shape, value: _Shape, *_: object, **__: object) -> int:
    """Two products, as torch counts them for its other attention kernels; the CPU's own is missing there."""
    *heads, n_queries, width = query
    n_keys = key[-2]
    return 2 * prod(heads) * n_queries * n_keys * (width + value[-1])


def _rnn_layer(x: _Shape, w_input: _Shape, w_hidden: _Shape, *_: object, **__: object) -> int:
    """One direction of one layer: both matrices at every step of every sample."""
    return 2 * prod(x[:-1]) * (prod(w_input) + prod(w_hidden))


def _rnn(x: _Shape, weights: Sequence[_Shape], *_: object, **__: object) -> int:
    """All layers and directions: every matrix at every step of every sample, packed ones too."""
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _grouped_mm(a: _Shape, b: _Shape, *_: object, **__: object) -> int:
    """Rows of a, or its columns, or columns of b, in groups; or both stacked."""
    # (G, M, K) with (K, N): every matrix meets its own share of the N columns.
    rows = prod(a[1:]) if (len(a), len(b)) == (3, 2) else prod(a)
    return 2 * rows * b[-1]


def _trilinear(
    a: _Shape,
    b: _Shape,
    c: _Shape,
    new_a: Sequence[int],
    new_b: Sequence[int],
    new_c: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    """Every weight of a bilinear layer once for every sample: shapes are spread to one, then multiplied."""
    shapes: list[list[int]] = []
    for shape, new in ((a, new_a), (b, new_b), (c, new_c)):
        spread = list(shape)
        for dim in sorted(new):
            spread.insert(dim, 1)
        shapes.append(spread)
    a_sizes, b_sizes, c_sizes = shapes
    return 2 * prod(map(max, a_sizes, b_sizes, c_sizes))


def _inner(a: _Shape, _b: _Shape, *_: object, **__: object) -> int:
    """A matrix or vector times a vector."""
    return 2 * prod(a)


def _added_product(_added: _Shape, a: _Shape, b: _Shape, *_: object, **__: object) -> int:
    """A product that is added to something: of matrices, alone or stacked, or with a vector."""
    return 2 * prod(a) * (b[-1] if len(b) > 1 else 1)
