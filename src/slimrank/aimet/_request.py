# SPDX-License-Identifier: Apache-2.0
"""What a script asked for, read and checked before anything runs."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, TypeVar

from torch import nn

from slimrank._errors import FileError, OptionError, ScoreError
from slimrank._names import listed, nearest
from slimrank._numbers import real_number, whole_number
from slimrank.aimet._parameters import (
    AutoParams,
    ChannelPruningParameters,
    CompressionScheme,
    CostMetric,
    GreedySelectionParameters,
    ManualParams,
    ModuleCompRatioPair,
    ParameterMode,
    Parameters,
    RankSelectScheme,
    SpatialSvdParameters,
    WeightSvdAutoParams,
    WeightSvdParameters,
)
from slimrank.records import Method

_METHODS: Mapping[CompressionScheme, Method] = {
    CompressionScheme.weight_svd: "weight_svd",
    CompressionScheme.spatial_svd: "spatial_svd",
    CompressionScheme.channel_pruning: "channel_pruning",
}
_PARAMETERS: Mapping[CompressionScheme, type[Parameters]] = {
    CompressionScheme.weight_svd: WeightSvdParameters,
    CompressionScheme.spatial_svd: SpatialSvdParameters,
    CompressionScheme.channel_pruning: ChannelPruningParameters,
}
# How pickles begin from protocol 2 on, and what their files are called.
_PICKLE_START = b"\x80"
_PICKLE_SUFFIXES = (".pkl", ".pickle", ".p")

_Choice = TypeVar("_Choice", bound=Enum)


@dataclass(frozen=True, slots=True, kw_only=True)
class Greedy:
    """The greedy selection that is asked for.

    Attributes:
        target: keep ratio of the whole model.
        candidates: N for the ratios k / N.
        monotonic: make scores monotone first.
        path: of the score table; None for nowhere.
        ignored: names of the modules to leave alone.
    """

    target: float
    candidates: int
    monotonic: bool
    path: Path | None
    ignored: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a call asks for.

    Attributes:
        method: that the scheme is.
        metric: that ratios are of.
        multiple_of: of ranks and numbers of channels.
        chosen: the greedy selection, or the ratio of each layer in manual mode.
    """

    method: Method
    metric: Literal["macs", "params"]
    multiple_of: int
    chosen: Greedy | Mapping[str, float]


def read_request(
    model: nn.Module, scheme: CompressionScheme, cost_metric: CostMetric, parameters: Parameters
) -> Request:
    """Reads and checks what a script hands over.

    Args:
        model: the caller's, whose modules the parameters name.
        scheme: as given.
        cost_metric: as given.
        parameters: as given.

    Returns:
        The same in the words of slimrank.

    Raises:
        OptionError: something is of another kind, out of range, or no module of the model.
        ScoreError: the path of the scores is that of a pickle.
        FileError: no file can be written there.
    """
    scheme = _choice(scheme, CompressionScheme, "compress_scheme")
    metric = _choice(cost_metric, CostMetric, "cost_metric")
    expected = _PARAMETERS[scheme]
    if not isinstance(parameters, expected):
        raise OptionError(
            f"parameters is a {type(parameters).__name__}; compress_scheme={scheme.name} takes "
            f"{expected.__name__}"
        )
    multiple_of = whole_number(parameters.multiplicity)
    if multiple_of is None or multiple_of < 1:
        raise OptionError(f"multiplicity={parameters.multiplicity!r}; give a whole number of at least 1")
    where = expected.__name__
    mode = _choice(parameters.mode, ParameterMode, f"{where}: mode", f"{where}.Mode")
    params = parameters.mode_params
    chosen: Greedy | Mapping[str, float]
    if mode is ParameterMode.manual:
        if not isinstance(params, ManualParams):
            raise OptionError(f"{where}: params is a {type(params).__name__}; give {where}.ManualModeParams")
        chosen = _manual_ratios(model, params.list_of_module_comp_ratio_pairs)
    elif isinstance(params, expected.AutoModeParams):
        chosen = _greedy(model, params)
    else:
        raise OptionError(f"{where}: params is a {type(params).__name__}; give {where}.AutoModeParams")
    return Request(
        method=_METHODS[scheme],
        metric="macs" if metric is CostMetric.mac else "params",
        multiple_of=multiple_of,
        chosen=chosen,
    )


def _choice(value: object, kind: type[_Choice], where: str, named: str | None = None) -> _Choice:
    """A member of an enumeration, which scripts know by a name."""
    if isinstance(value, kind):
        return value
    names = [f"{named or kind.__name__}.{member.name}" for member in kind]
    raise OptionError(f"{where} is {value!r}; give one of {', '.join(names)} of slimrank.aimet")


def _greedy(model: nn.Module, params: AutoParams | WeightSvdAutoParams) -> Greedy:
    if isinstance(params, WeightSvdAutoParams):
        _choice(params.rank_select_scheme, RankSelectScheme, "rank_select_scheme")
        greedy, keyword = params.select_params, "select_params"
    else:
        greedy, keyword = params.greedy_params, "greedy_select_params"
    if not isinstance(greedy, GreedySelectionParameters):
        raise OptionError(f"{keyword} is a {type(greedy).__name__}; give GreedySelectionParameters")
    target = real_number(greedy.target_comp_ratio)
    if target is None or not 0 < target <= 1:
        raise OptionError(
            f"target_comp_ratio={greedy.target_comp_ratio!r} is no cost after / cost before in (0, 1]; give "
            "e.g. 0.5 to keep half"
        )
    return Greedy(
        target=target,
        candidates=greedy.num_comp_ratio_candidates,
        monotonic=bool(greedy.use_monotonic_fit),
        path=_scores_path(greedy.saved_eval_scores_dict),
        ignored=tuple(
            _name_of(model, module, "modules_to_ignore")
            for module in _listed_modules(params.modules_to_ignore)
        ),
    )


def _listed_modules(modules: object) -> Sequence[object]:
    if isinstance(modules, nn.Module) or not isinstance(
        modules, list | tuple | set | frozenset | nn.ModuleList
    ):
        raise OptionError(
            f"modules_to_ignore is a {type(modules).__name__}; give a list of modules, e.g. [model.conv1]"
        )
    return tuple(modules)


def _scores_path(path: str | os.PathLike[str] | None) -> Path | None:
    """Where the table of scores is kept; None for nowhere."""
    if not path:
        return None
    if not isinstance(path, str | os.PathLike):
        raise OptionError(f"saved_eval_scores_dict is a {type(path).__name__}; give the path of a JSON file")
    table = Path(path)
    is_pickle = table.suffix.lower() in _PICKLE_SUFFIXES
    if table.is_file():
        with table.open("rb") as file:
            is_pickle = is_pickle or file.read(1) == _PICKLE_START
    if is_pickle:
        raise ScoreError(
            f"saved_eval_scores_dict={str(path)!r} is a pickle, which may run code when it is read; give the "
            "path of a JSON file, e.g. 'eval_scores.json': it is written in the first run and read in later "
            "ones. slimrank.Scores.from_aimet reads AIMET's pickle safely, beside a study"
        )
    # Told before the callback has evaluated anything.
    if table.is_dir() or not table.parent.is_dir():
        raise FileError(
            f"saved_eval_scores_dict={str(path)!r} cannot be written; give a file in an existing folder"
        )
    return table


def _manual_ratios(model: nn.Module, pairs: object) -> dict[str, float]:
    """The ratio of each layer."""
    where = "list_of_module_comp_ratio_pairs"
    if not isinstance(pairs, list | tuple) or not pairs:
        raise OptionError(f"{where} is {pairs!r}; give a list of ModuleCompRatioPair, at least one")
    ratios: dict[str, float] = {}
    for pair in pairs:
        if not isinstance(pair, ModuleCompRatioPair):
            raise OptionError(
                f"{where} holds a {type(pair).__name__}; give ModuleCompRatioPair(module, ratio)"
            )
        name = _name_of(model, pair.module, where)
        if name in ratios:
            raise OptionError(f"{where}: layer {name!r} stands twice; leave one pair of it")
        ratio = real_number(pair.comp_ratio)
        if ratio is None or not 0 < ratio <= 1:
            raise OptionError(
                f"{where}: layer {name!r}: comp_ratio {pair.comp_ratio!r} is no cost after / cost before in "
                "(0, 1]; give e.g. 0.5"
            )
        ratios[name] = ratio
    return ratios


def _name_of(model: nn.Module, module: object, where: str) -> str:
    """The dotted name of a module of the model."""
    name: str | None = next((name for name, known in model.named_modules() if known is module), None)
    if isinstance(module, str):
        names = [known for known, _ in model.named_modules() if known]
        raise OptionError(
            f"{where} holds the text {module!r}; give the module itself, e.g. "
            f"model.get_submodule({module!r}); {nearest(module, names)}"
        )
    if not name:
        kind = type(module).__name__
        children = listed(f"model.{child}" for child, _ in model.named_children())
        raise OptionError(
            f"{where} holds a {kind} that is no layer inside the model; give modules of the model that is "
            f"compressed, the objects themselves, e.g. some of {children}"
        )
    return name
