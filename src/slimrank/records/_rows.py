# SPDX-License-Identifier: Apache-2.0
"""Tuples of what was found, which also answer by name and give tables of pandas."""

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import Generic, Protocol, SupportsIndex, TypeVar, cast, overload

from slimrank._errors import MissingPackageError, UnknownNameError
from slimrank._names import nearest
from slimrank.records._curve import Curve, GroupCurve
from slimrank.records._layer import LayerSpec

# Rows that are shown; of more, so many at either end.
_SHOWN, _AT_ENDS = 20, 8
_Row = TypeVar("_Row")
_Named = TypeVar("_Named")


class Frame(Protocol):
    """What slimrank needs of a ``pandas.DataFrame``, which every table here is."""

    @property
    def columns(self) -> Iterable[str]:
        """Names of the columns."""
        ...

    def __getitem__(self, key: str, /) -> Iterable[object]:
        """One column."""
        ...

    def to_csv(self, path_or_buf: str | os.PathLike[str]) -> str | None:
        """Writes it to a file."""
        ...


class _ByName(tuple[_Row, ...], Generic[_Row, _Named]):
    """A tuple in every way, whose rows are also found by a name."""

    __slots__ = ()

    @overload
    def __getitem__(self, key: str) -> _Named: ...

    @overload
    def __getitem__(self, key: SupportsIndex) -> _Row: ...

    @overload
    def __getitem__(self, key: slice) -> tuple[_Row, ...]: ...

    def __getitem__(self, key: str | SupportsIndex | slice) -> _Named | _Row | tuple[_Row, ...]:
        return self._named(key) if isinstance(key, str) else super().__getitem__(key)

    def _named(self, name: str) -> _Named:
        raise NotImplementedError

    def __repr__(self) -> str:
        rows = [f"  {row!r}" for row in self]
        if len(rows) > _SHOWN:
            rows[_AT_ENDS:-_AT_ENDS] = [f"  ... {len(rows) - 2 * _AT_ENDS} more; to_dataframe() has all ..."]
        return "\n".join([f"{type(self).__name__}({len(self)})" + ":" * bool(rows), *rows])


class Layers(_ByName[LayerSpec, LayerSpec]):
    """Every layer of a model, in execution order; ``layers["conv1"]`` is the one of that name."""

    __slots__ = ()

    def _named(self, name: str) -> LayerSpec:
        for spec in self:
            if spec.name == name:
                return spec
        raise UnknownNameError(f"there is no layer {name!r}; {nearest(name, [spec.name for spec in self])}")

    def to_dataframe(self) -> Frame:
        """A row for each layer.

        Returns:
            Columns name, kind, class_name, weight_shape, dtype, calls (how many), macs, params, methods
            (with commas between them) and reason (why none applies, else None).

        Raises:
            MissingPackageError: pandas is not installed.
        """
        return data_frame(
            {
                "name": [spec.name for spec in self],
                "kind": [spec.kind for spec in self],
                "class_name": [spec.class_name for spec in self],
                "weight_shape": [spec.weight_shape for spec in self],
                "dtype": [spec.dtype for spec in self],
                "calls": [len(spec.calls) for spec in self],
                "macs": [spec.macs for spec in self],
                "params": [spec.params for spec in self],
                "methods": [", ".join(spec.methods) for spec in self],
                "reason": [spec.reason for spec in self],
            }
        )


class Curves(_ByName[Curve, "Curves"]):
    """Curves of layers; ``curves["conv1"]`` are those of one layer, one for each method and form."""

    __slots__ = ()

    def _named(self, name: str) -> "Curves":
        found = Curves(curve for curve in self if curve.layer == name)
        if not found:
            known = dict.fromkeys(curve.layer for curve in self)
            raise UnknownNameError(f"there is no curve of a layer {name!r}; {nearest(name, known)}")
        return found

    def to_dataframe(self) -> Frame:
        """A row for each rank of each curve.

        Returns:
            Columns layer, method, form, rank, macs, params, bytes, error and damage.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        points = [(curve, index) for curve in self for index in range(len(curve.ranks))]
        return data_frame(
            {
                "layer": [curve.layer for curve, _ in points],
                "method": [curve.method for curve, _ in points],
                "form": [curve.form for curve, _ in points],
                "rank": [int(curve.ranks[index]) for curve, index in points],
                "macs": [int(curve.macs[index]) for curve, index in points],
                "params": [int(curve.params[index]) for curve, index in points],
                "bytes": [int(curve.bytes[index]) for curve, index in points],
                "error": [float(curve.error[index]) for curve, index in points],
                "damage": [float(curve.damage[index]) for curve, index in points],
            }
        )


class GroupCurves(_ByName[GroupCurve, GroupCurve]):
    """Curves of channel groups; ``group_curves["conv1"]`` is that of the group of this name."""

    __slots__ = ()

    def _named(self, name: str) -> GroupCurve:
        for curve in self:
            if curve.group == name:
                return curve
        known = [curve.group for curve in self]
        raise UnknownNameError(f"there is no curve of a group {name!r}; {nearest(name, known)}")

    def to_dataframe(self) -> Frame:
        """A row for each number of units of each curve.

        Returns:
            Columns group, kept, units (of the whole group), error and damage.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        points = [(curve, index) for curve in self for index in range(len(curve.kept))]
        return data_frame(
            {
                "group": [curve.group for curve, _ in points],
                "kept": [int(curve.kept[index]) for curve, index in points],
                "units": [len(curve.order) for curve, _ in points],
                "error": [float(curve.error[index]) for curve, index in points],
                "damage": [float(curve.damage[index]) for curve, index in points],
            }
        )


def data_frame(columns: Mapping[str, Sequence[object]]) -> Frame:
    """A table of pandas.

    Args:
        columns: name -> values, all of one length.

    Returns:
        The table.

    Raises:
        MissingPackageError: pandas is not installed.
    """
    try:
        pandas = import_module("pandas")
    except ImportError as error:
        raise MissingPackageError(
            "to_dataframe() needs pandas, which is not installed: pip install 'slimrank[pandas]'"
        ) from error
    return cast(Frame, pandas.DataFrame(dict(columns)))
