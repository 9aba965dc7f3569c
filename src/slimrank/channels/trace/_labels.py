# SPDX-License-Identifier: Apache-2.0
"""Labels: which index of which dimension is which channel, and which of them are one and the same."""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

# One label for each index of a dimension; None where no index can ever be removed.
Axis = NDArray[np.int64] | None
Why = Callable[[], str]

# The label of what never goes.
_FIXED = 0
_TWO_WAYS = "laid out in two ways: "
_OUTSIDE = "with what is no channel: an input of the model, a constant or a position"
# In place of the number of a reason, where a label may go. Greater than all, so that a minimum keeps reasons.
_NEVER = np.iinfo(np.int64).max
# Products of labels in one dimension at most, since each is a Python set. Beyond it one factor stays whole.
_MOST_PRODUCTS = 1 << 17
# What an expanded dimension carries: every index is the same, so that it takes the size of what it meets.
ANY: NDArray[np.int64] = np.empty(0, np.int64)


@dataclass(frozen=True, slots=True)
class Birth:
    """Labels made together, ``start`` to ``stop``: those of one dimension.

    Attributes:
        start, stop: the range of labels.
        tensor: parameter or buffer they were made for; None for a part of a dimension that was split, "" for
            a tensor made in the forward.
        dim: dimension of that tensor.
    """

    start: int
    stop: int
    tensor: str | None
    dim: int = 0


class Labels:
    """Union-find over labels, in which a label can also be a product of others.

    An index goes as soon as one part of its label goes: channel ``c`` of a dimension that is seen as
    (heads, width) is the product of head ``c // width`` and place ``c % width``. Label 0 stands for what
    never goes. Labels that may not go carry a reason; the earliest one is kept.
    """

    def __init__(self) -> None:
        # Arrays that grow by doubling, indexed by label.
        self._parent = np.zeros(1024, np.int64)
        self._reason = np.full(1024, _NEVER, np.int64)
        self._is_product = np.zeros(1024, np.bool_)
        self._parts: dict[int, frozenset[int]] = {}
        self._products: dict[frozenset[int], int] = {}
        self._known: dict[int, frozenset[int]] = {}
        self._reasons: list[str] = []
        self._size = 1
        self._starts: list[int] = []
        self.births: list[Birth] = []
        self.cuts: list[NDArray[np.int64]] = []

    def fresh(self, size: int, tensor: str | None, dim: int = 0) -> NDArray[np.int64]:
        """New labels of one dimension.

        Args:
            size: how many.
            tensor: parameter or buffer; None for a part of a dimension, "" for a tensor of the forward.
            dim: dimension of that tensor.

        Returns:
            (size,) labels.
        """
        start = self._take(size)
        self.births.append(Birth(start, self._size, tensor, dim))
        self._starts.append(start)
        return np.arange(start, self._size)

    def canonical(self, axis: NDArray[np.int64]) -> NDArray[np.int64]:
        """The same labels, written so that equal ones are equal numbers.

        Args:
            axis: (n,) labels.

        Returns:
            (n,) labels; 0 where the index never goes because nothing is behind it.
        """
        roots = self._roots(axis)
        mask = self._is_product[roots]
        if mask.any():
            roots = roots.copy()
            values, inverse = np.unique(roots[mask], return_inverse=True)
            roots[mask] = np.array([self._product(self.parts(v)) for v in values.tolist()], np.int64)[inverse]
        return roots

    def parts(self, label: int) -> frozenset[int]:
        """What a label is made of: labels that are no products, written canonically; empty for label 0."""
        known = self._known.get(label)
        if known is None:
            root = self._root(label)
            if root == _FIXED:
                known = frozenset()
            elif self._is_product[root]:
                known = frozenset().union(*(self.parts(part) for part in self._parts[root]))
                # What never goes adds nothing; of a product that never goes, all parts have a reason.
                known = self._free(known) or known
            else:
                known = frozenset((root,))
            self._known[label] = known
        return known

    def all_parts(self, axis: Axis) -> NDArray[np.int64]:
        """Every part of every label of a dimension, once, ascending."""
        if axis is None or not axis.size:
            return np.empty(0, np.int64)
        roots = np.unique(self._roots(axis))
        mask = self._is_product[roots]
        plain: NDArray[np.int64] = roots[~mask & (roots != _FIXED)]
        if not mask.any():
            return plain
        inner: frozenset[int] = frozenset().union(*(self.parts(int(root)) for root in roots[mask]))
        return np.union1d(plain, np.array(sorted(inner), np.int64))

    def reason_of(self, label: int) -> tuple[int, str] | None:
        """Number and text of the reason why a label that is no product may not go; None if it may."""
        number = int(self._reason[self._root(label)])
        return None if number == _NEVER else (number, self._reasons[number])

    def is_frozen(self, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of canonical labels that are no products may not go."""
        frozen: NDArray[np.bool_] = self._reason[labels] != _NEVER
        return frozen

    def has_free(self, axis: Axis) -> bool:
        """Whether anything of a dimension may still go."""
        return not bool(self.is_frozen(self.all_parts(axis)).all())

    def freeze(self, axis: Axis, why: Why) -> None:
        """Nothing of a dimension may go.

        Args:
            axis: labels of the dimension.
            why: gives the reason; only asked if something was free.
        """
        parts = self.all_parts(axis)
        new = parts[self._reason[parts] == _NEVER]
        if new.size:
            self._reason[new] = len(self._reasons)
            self._reasons.append(why())
            self._known.clear()

    def unify(self, a: Axis, b: Axis, why: Why) -> Axis:
        """Two dimensions are index by index the same.

        Args:
            a: labels of one.
            b: labels of the other, of the same size.
            why: gives the reason where that means that nothing of them may go.

        Returns:
            Labels of both.
        """
        if a is b or b is None or a is None:
            if a is not b:
                self.freeze(a if b is None else b, lambda: f"{why()}, {_OUTSIDE}")
            return a if b is None else b
        if not a.size or not b.size:
            return b if b.size else a
        self._unify(a, b, why)
        return a

    def split(self, axis: Axis, outer: int, inner: int, why: Why) -> tuple[Axis, Axis]:
        """A dimension as two.

        Args:
            axis: (outer * inner,) labels.
            outer: size of the first dimension.
            inner: size of the second.
            why: gives the reason where the dimension is already split in another way.

        Returns:
            Labels of the two dimensions.
        """
        if axis is None or not axis.size:
            return axis, axis
        if outer == 1 or inner == 1:
            return (None, axis) if outer == 1 else (axis, None)
        canonical = self.canonical(axis)
        found = self._factors(canonical, outer, inner) or self._refactored(canonical, outer, inner, why)
        return found or self._split_anew(canonical, outer, inner, why)

    def merge(self, dims: Sequence[tuple[Axis, int]], why: Why) -> Axis:
        """Several dimensions as one.

        Args:
            dims: labels and size of each, the outermost first.
            why: gives the reason where there are too many labels.

        Returns:
            (product of the sizes,) labels.
        """
        merged, total = dims[0]
        for axis, size in dims[1:]:
            merged = self._merge_two(merged, total, axis, size, why)
            total *= size
        return merged

    def couple(self, axis: Axis, sections: int, why: Why) -> None:
        """Index i of every one of equal sections is the same channel.

        Args:
            axis: labels of the dimension, of a size that ``sections`` divides.
            sections: how many there are.
            why: gives the reason where that is impossible.
        """
        if axis is None or not axis.size:
            return
        first, *others = axis.reshape(sections, -1)
        for other in others:
            self.unify(first, other, why)

    def _take(self, size: int) -> int:
        start, stop = self._size, self._size + size
        while stop > self._parent.size:
            grown = self._parent.size
            self._parent = np.concatenate([self._parent, np.zeros(grown, np.int64)])
            self._reason = np.concatenate([self._reason, np.full(grown, _NEVER, np.int64)])
            self._is_product = np.concatenate([self._is_product, np.zeros(grown, np.bool_)])
        self._parent[start:stop] = np.arange(start, stop)
        self._size = stop
        return start

    def _roots(self, axis: NDArray[np.int64]) -> NDArray[np.int64]:
        roots: NDArray[np.int64] = self._parent[axis]
        while True:
            further: NDArray[np.int64] = self._parent[roots]
            if np.array_equal(further, roots):
                break
            roots = further
        self._parent[axis] = roots
        return roots

    def _root(self, label: int) -> int:
        parent = self._parent
        while (further := int(parent[label])) != label:
            label = further
        return label

    def _product(self, parts: frozenset[int]) -> int:
        """The label of a product of canonical labels that are no products themselves."""
        if len(parts) <= 1:
            return next(iter(parts), _FIXED)
        label = self._products.get(parts)
        if label is None:
            label = self._products[parts] = self._take(1)
            self._is_product[label] = True
            self._parts[label] = parts
        return label

    def _unify(self, a: NDArray[np.int64], b: NDArray[np.int64], why: Why) -> None:
        a, b = self.canonical(a), self.canonical(b)
        differs = a != b
        if not differs.any():
            return
        a, b = a[differs], b[differs]
        fixed = (a == _FIXED) | (b == _FIXED)
        if fixed.any():
            self.freeze(np.maximum(a, b)[fixed], lambda: f"{why()}, {_OUTSIDE}")
            a, b = a[~fixed], b[~fixed]
        are_products = self._is_product[a].astype(int) + self._is_product[b]
        self._link(a[are_products == 0], b[are_products == 0])
        for label, other in zip(a[are_products == 1], b[are_products == 1], strict=True):
            self._match(int(label), int(other), why)
        if (are_products == 2).any():
            self._unify_products(a[are_products == 2], b[are_products == 2], why)

    def _link(self, a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
        """Makes labels that are no products one, pair by pair."""
        if not a.size:
            return
        involved = np.union1d(a, b)
        while True:
            a, b = self._roots(a), self._roots(b)
            differs = a != b
            if not differs.any():
                break
            # Of several pairs with one greater label, the last one is written; the others take another round.
            self._parent[np.maximum(a, b)[differs]] = np.minimum(a, b)[differs]
        np.minimum.at(self._reason, self._roots(involved), self._reason[involved])
        self._known.clear()

    def _match(self, label: int, other: int, why: Why) -> None:
        """Makes two labels one, at least one of which is a product.

        What both have in common cancels. If one label is left on each side, these two are one; if one is left
        on one side and several on the other, the single one is their product. Otherwise nothing tells which
        answers which: a dimension is kept whole, and what is left is looked at again.
        """
        while True:
            a, b = self.parts(label), self.parts(other)
            only_a, only_b = a - b, b - a
            if len(only_a) == len(only_b) == 1:
                self._link(np.array([*only_a]), np.array([*only_b]))
                return
            free_a, free_b = self._free(only_a), self._free(only_b)
            if not free_a or not free_b:
                self._freeze_rest(free_a | free_b, (only_a | only_b) - free_a - free_b, why)
                return
            only_a, only_b = free_a, free_b
            if len(only_a) == 1 or len(only_b) == 1:
                single, parts = (only_a, only_b) if len(only_a) == 1 else (only_b, only_a)
                self._refine(next(iter(single)), parts)
                return
            self._pin(only_a | only_b, why)

    def _freeze_rest(self, free: frozenset[int], frozen: frozenset[int], why: Why) -> None:
        """What one label has more than the other may not go alone, nor against what is frozen."""
        rest = np.array(sorted(free), np.int64)
        if frozen:
            self._reason[rest] = self._reason[np.array(sorted(frozen))].min()
            self._known.clear()
        else:
            self.freeze(rest, lambda: _TWO_WAYS + why())

    def _pin(self, parts: frozenset[int], why: Why) -> None:
        """Of parts that do not answer each other, the dimension with the fewest indices stays whole."""
        births = [self.births[bisect_right(self._starts, part) - 1] for part in sorted(parts)]
        birth = min(births, key=lambda birth: birth.stop - birth.start)
        self.freeze(np.arange(birth.start, birth.stop), lambda: _TWO_WAYS + why())

    def _free(self, parts: frozenset[int]) -> frozenset[int]:
        return frozenset(part for part in parts if self._reason[part] == _NEVER)

    def _refine(self, label: int, parts: frozenset[int]) -> None:
        """A label that is no product is from now on one."""
        number = self._reason[label]
        if number != _NEVER:
            members = np.array(sorted(parts))
            self._reason[members] = np.minimum(self._reason[members], number)
        self._is_product[label] = True
        self._parts[label] = parts
        self._known.clear()

    def _unify_products(self, a: NDArray[np.int64], b: NDArray[np.int64], why: Why) -> None:
        """Products are matched as dimensions where they are the products of two, else one by one."""
        for outer in _divisors(a.size):
            inner = a.size // outer
            for factored, other in ((a, b), (b, a)):
                found = self._factors(self.canonical(factored), outer, inner)
                if found is not None and found[0] is not None and found[1] is not None:
                    rows, columns = self.split(other, outer, inner, why)
                    self.unify(found[0], rows, why)
                    self.unify(found[1], columns, why)
                    return
        for one_label, other_label in zip(a, b, strict=True):
            self._match(int(one_label), int(other_label), why)

    def _factors(self, axis: NDArray[np.int64], outer: int, inner: int) -> tuple[Axis, Axis] | None:
        """Labels of two dimensions whose product the canonical labels of one already are; None if not."""
        table = axis.reshape(outer, inner)
        if (table == table[:, :1]).all():
            return _tidy(table[:, 0]), None
        if (table == table[:1]).all():
            return None, _tidy(table[0])
        if not self._is_product[table].all():
            return None
        parts = [[self.parts(int(label)) for label in row] for row in table]
        rows = [frozenset.intersection(*row) for row in parts]
        columns = [frozenset.intersection(*column) for column in zip(*parts, strict=True)]
        for row, of_row in zip(rows, parts, strict=True):
            if any(row | column != both for column, both in zip(columns, of_row, strict=True)):
                return None
        return (
            _tidy(np.array([self._product(row) for row in rows], np.int64)),
            _tidy(np.array([self._product(column) for column in columns], np.int64)),
        )

    def _refactored(
        self, axis: NDArray[np.int64], outer: int, inner: int, why: Why
    ) -> tuple[Axis, Axis] | None:
        """A dimension that is split elsewhere already: one of its two parts is split further."""
        if not self._is_product[axis].any():
            return None
        for size in _divisors(axis.size):
            if size % outer and outer % size:
                continue
            found = self._factors(axis, size, axis.size // size)
            if found is None:
                continue
            rows, columns = found
            if size % outer == 0:
                rows, middle = self.split(rows, outer, size // outer, why)
                return rows, self._merge_two(middle, size // outer, columns, axis.size // size, why)
            middle, columns = self.split(columns, outer // size, inner, why)
            return self._merge_two(rows, size, middle, outer // size, why), columns
        return None

    def _split_anew(
        self, axis: NDArray[np.int64], outer: int, inner: int, why: Why
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        rows, columns = self.fresh(outer, None), self.fresh(inner, None)
        parts = self.all_parts(axis)
        if axis.size > _MOST_PRODUCTS:
            self.freeze(parts, why)
        if parts.size and self.is_frozen(parts).all():
            # Nothing of it can go: the reason is passed on, and the structure does not matter.
            self._reason[rows] = self._reason[columns] = self._reason[parts].min()
            return rows, columns
        is_plain = not self._is_product[axis].any() and bool((self._reason[axis] == _NEVER).all())
        if is_plain and axis.all() and np.unique(axis).size == axis.size:
            pairs = ((row, column) for row in rows.tolist() for column in columns.tolist())
            for label, pair in zip(axis.tolist(), pairs, strict=True):
                parts_of = frozenset(pair)
                self._parts[label] = parts_of
                self._products[parts_of] = label
            self._is_product[axis] = True
            self._known.clear()
            return rows, columns
        for row, of_row in zip(rows.tolist(), axis.reshape(outer, inner).tolist(), strict=True):
            for column, label in zip(columns.tolist(), of_row, strict=True):
                both = self.parts(row) | self.parts(column)
                if label == _FIXED:
                    self.freeze(np.array(sorted(both)), why)
                else:
                    self._match(label, self._product(both), why)
        return rows, columns

    def _merge_two(self, a: Axis, n_a: int, b: Axis, n_b: int, why: Why) -> Axis:
        """Two dimensions as one: an index goes as soon as its index in ``a`` goes, or that in ``b``."""
        rows, columns = self._deciding(a, n_a, b, n_b, why)
        if rows is not None and columns is not None:
            return self._outer_product(rows, columns)
        if rows is not None:
            return np.repeat(rows, n_b)
        if columns is not None:
            return np.tile(columns, n_a)
        return None if a is None or b is None else ANY

    def _deciding(self, a: Axis, n_a: int, b: Axis, n_b: int, why: Why) -> tuple[Axis, Axis]:
        """The dimensions whose labels make up those of the product; None for one that adds nothing."""
        rows, columns = (axis if axis is not None and axis.size else None for axis in (a, b))
        if rows is None or columns is None:
            return rows, columns
        has_free_rows, has_free_columns = self.has_free(rows), self.has_free(columns)
        if has_free_rows and has_free_columns and n_a * n_b > _MOST_PRODUCTS:
            self.freeze(rows, why)
            has_free_rows = False
        # What may not go adds nothing to a product; where neither may go, one of them carries the reason.
        if not has_free_rows:
            return None, columns
        return rows, columns if has_free_columns else None

    def _outer_product(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The product of every label of one dimension with every label of another.

        Returns:
            (rows * columns,) labels, the columns running fastest.
        """
        # Rows first: new labels are numbered in this order.
        canonical_rows, canonical_columns = self.canonical(rows), self.canonical(columns)
        of_columns = [self.parts(int(label)) for label in canonical_columns]
        return np.array(
            [
                self._product(self.parts(int(label)) | parts)
                for label in canonical_rows
                for parts in of_columns
            ],
            np.int64,
        )


def _tidy(axis: NDArray[np.int64]) -> Axis:
    return axis.copy() if axis.any() else None


def _divisors(number: int) -> Iterator[int]:
    for candidate in range(2, number // 2 + 1):
        if number % candidate == 0:
            yield candidate
