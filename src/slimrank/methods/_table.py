# SPDX-License-Identifier: Apache-2.0
"""The method table: one row per method, what it replaces and how that is built."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from slimrank._errors import UnknownNameError
from slimrank._names import nearest
from slimrank.cost import FORMS
from slimrank.methods._pair import Pair, error_by_rank, fit_pair
from slimrank.methods._pair_modules import empty_pair, empty_triple
from slimrank.methods._target import Target
from slimrank.methods._tucker import Triple, error_by_second_rank, fit_triple, rank_path, triple_of
from slimrank.records import PRUNING, Form, LayerSpec, Method, Setting, replaces_groups

Ranks = NDArray[np.int64]


class Factors(Protocol):
    """The fitted factors of one layer, float64, in the order in which they are applied."""

    @property
    def setting(self) -> Setting:
        """What a plan says about them."""
        ...

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """One per module of the replacement; each holds as many numbers as the weight of its module."""
        ...

    def weight(self, spec: LayerSpec) -> Tensor:
        """The (O, D) float64 weight that they amount to, columns as in ``weight.flatten(1)``."""
        ...

    def outputs(self, spec: LayerSpec, row: Tensor) -> Tensor:
        """What that weight makes of one row of inputs: (D,) -> (O,) float64."""
        ...


class ErrorByRank(Protocol):
    """Tells the error of a form at every rank, from one decomposition."""

    def __call__(self, spec: LayerSpec, form: Form, target: Target, *, limit: int | None = None) -> Tensor:
        """(R + 1,) float64 up to rank ``limit``; entry 0 is the error without the layer.

        Exact where the form is closed; else an upper bound, which a few fits then lower.
        """
        ...


class RankPath(Protocol):
    """Chooses the ranks of a form of three factors: one number leads along a path of both."""

    def __call__(self, spec: LayerSpec, form: Form, target: Target) -> tuple[Ranks, Ranks, Tensor]:
        """``ranks`` ascending, ``ranks_in`` never falling, both (K,) int64; and (K,) float64 errors.

        Errors as those of ``ErrorByRank``.
        """
        ...


class FitFactors(Protocol):
    """Fits the factors that take the place of a layer."""

    def __call__(
        self,
        spec: LayerSpec,
        setting: Setting,
        target: Target,
        *,
        alternations: int,
        start: Factors | None,
    ) -> Factors:
        """The factors of one setting, refined in at most so many rounds; from others of it, if there are."""
        ...


class EmptyModules(Protocol):
    """Makes the modules that take the place of a layer."""

    def __call__(self, spec: LayerSpec, setting: Setting, *, has_bias: bool) -> tuple[nn.Module, ...]:
        """Modules with a ``weight`` each, on the meta device; only the last may have a bias.

        Of a recurrent layer they are those of its input matrix; the last one becomes part of the layer.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFunctions:
    """How a method replaces a layer by modules that run one after the other.

    Attributes:
        factor_names: what the tensor of each factor is called in a journal, in the order of the modules.
        errors: error of a form at every rank.
        path: of forms with two ranks, which of them go together, and their errors; None where one is all.
        fit: fits the factors of one setting.
        modules: makes the modules, still without values.
        factors_of: makes factors of a setting and their tensors, as a journal gives them back.
    """

    factor_names: tuple[str, ...]
    errors: ErrorByRank
    fit: FitFactors
    modules: EmptyModules
    factors_of: Callable[[Setting, Sequence[Tensor]], Factors]
    path: RankPath | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodRow:
    """One method.

    Attributes:
        name: as in plans.
        forms: its forms, in the order in which ties are decided; () where it replaces groups.
        functions: how it replaces a layer; None where it replaces groups, which only lose channels.
    """

    name: Method
    forms: tuple[Form, ...] = ()
    functions: LayerFunctions | None = None

    @property
    def replaces(self) -> Literal["layer", "group"]:
        """Whether it works on a layer alone, or on a group of channels of several layers."""
        return "group" if replaces_groups(self.name) else "layer"


def _fit_pair(
    spec: LayerSpec, setting: Setting, target: Target, *, alternations: int, start: Factors | None
) -> Factors:
    pair = start if isinstance(start, Pair) else None
    return fit_pair(spec, setting.form, setting.rank, target, alternations=alternations, start=pair)


def _fit_triple(
    spec: LayerSpec, setting: Setting, target: Target, *, alternations: int, start: Factors | None
) -> Factors:
    triple = start if isinstance(start, Triple) else None
    return fit_triple(spec, setting, target, alternations=alternations, start=triple)


def _empty_pair(spec: LayerSpec, setting: Setting, *, has_bias: bool) -> tuple[nn.Module, ...]:
    return empty_pair(spec, setting.form, setting.rank, has_bias=has_bias)


def _pair_of(setting: Setting, tensors: Sequence[Tensor]) -> Factors:
    first, second = tensors
    return Pair(form=setting.form, first=first, second=second)


# Shared by every method whose replacement is two modules with one rank between them.
_PAIR = LayerFunctions(
    factor_names=("first", "second"),
    errors=error_by_rank,
    fit=_fit_pair,
    modules=_empty_pair,
    factors_of=_pair_of,
)

_TUCKER = LayerFunctions(
    factor_names=("first", "core", "last"),
    errors=error_by_second_rank,
    fit=_fit_triple,
    modules=empty_triple,
    factors_of=triple_of,
    path=rank_path,
)

# Every method by name; in the order in which they are listed everywhere.
TABLE: Mapping[Method, MethodRow] = MappingProxyType(
    {
        row.name: row
        for row in (
            MethodRow(name="weight_svd", forms=FORMS["weight_svd"], functions=_PAIR),
            MethodRow(name="spatial_svd", forms=FORMS["spatial_svd"], functions=_PAIR),
            MethodRow(name="tucker2", forms=FORMS["tucker2"], functions=_TUCKER),
            MethodRow(name=PRUNING),
        )
    }
)


def layer_functions(method: Method) -> LayerFunctions:
    """How a method replaces a layer.

    Args:
        method: its name.

    Returns:
        Its functions.

    Raises:
        UnknownNameError: the method replaces no single layer.
    """
    row = TABLE.get(method)
    if row is None or row.functions is None:
        known = [row.name for row in TABLE.values() if row.functions is not None]
        raise UnknownNameError(f"method {method!r} replaces no single layer; {nearest(method, known)}")
    return row.functions
