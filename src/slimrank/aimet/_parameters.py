# SPDX-License-Identifier: Apache-2.0
"""What a script builds and hands over: AIMET's names, orders and defaults."""

import os
from collections.abc import Iterable, Sequence
from enum import Enum

from torch import nn

from slimrank._errors import OptionError
from slimrank._numbers import whole_number


class CompressionScheme(Enum):
    """How layers shrink: one scheme a call."""

    weight_svd = 1
    spatial_svd = 2
    channel_pruning = 3


class CostMetric(Enum):
    """What a ratio is of: MACs, or params (``memory``)."""

    mac = 1
    memory = 2


class RankSelectScheme(Enum):
    """How ranks of weight SVD are selected."""

    greedy = 1


class GreedySelectionParameters:
    """What the greedy selection is asked for.

    Args:
        target_comp_ratio: cost of the whole model after / before, in (0, 1].
        num_comp_ratio_candidates: N for the candidates k / N of every layer; at least 2.
        use_monotonic_fit: make the scores of each layer monotone first, by isotonic regression.
        saved_eval_scores_dict: path of slimrank's own score table, a JSON file: written where it does not
            exist and gone on with where it does, with the candidates in it. None keeps no file.

    Raises:
        OptionError: too few candidates.
    """

    def __init__(
        self,
        target_comp_ratio: float,
        num_comp_ratio_candidates: int = 10,
        use_monotonic_fit: bool = False,
        saved_eval_scores_dict: str | os.PathLike[str] | None = None,
    ) -> None:
        candidates = whole_number(num_comp_ratio_candidates)
        if candidates is None or candidates < 2:
            raise OptionError(
                f"num_comp_ratio_candidates={num_comp_ratio_candidates!r}; give a whole number of at least 2"
            )
        self.target_comp_ratio = target_comp_ratio
        self.num_comp_ratio_candidates = candidates
        self.use_monotonic_fit = use_monotonic_fit
        self.saved_eval_scores_dict = saved_eval_scores_dict


class ModuleCompRatioPair:
    """A layer of the model, and the ratio that it shall have.

    Args:
        module: a layer of the model that is compressed, the object itself.
        comp_ratio: cost of the layer after / before, in (0, 1]; of channel pruning the share of its input
            channels that stays.
    """

    def __init__(self, module: nn.Module, comp_ratio: float) -> None:
        self.module = module
        self.comp_ratio = comp_ratio


class ParameterMode(Enum):
    """Who chooses the ratios of the layers."""

    manual = 1
    auto = 2


class ManualParams:
    """Ratios that the caller chose.

    Args:
        list_of_module_comp_ratio_pairs: one pair a layer; other layers are left alone.
    """

    def __init__(self, list_of_module_comp_ratio_pairs: Sequence[ModuleCompRatioPair]) -> None:
        self.list_of_module_comp_ratio_pairs = list_of_module_comp_ratio_pairs


class AutoParams:
    """Ratios that the greedy selection chooses.

    Args:
        greedy_select_params: target and candidates.
        modules_to_ignore: modules of the model to leave alone; None for none.
    """

    def __init__(
        self,
        greedy_select_params: GreedySelectionParameters,
        modules_to_ignore: Sequence[nn.Module] | None = None,
    ) -> None:
        self.greedy_params = greedy_select_params
        self.modules_to_ignore = [] if modules_to_ignore is None else modules_to_ignore


class WeightSvdAutoParams:
    """Ratios that a selection chooses, which is named, as weight SVD asks for it.

    Args:
        rank_select_scheme: the selection; there is one.
        select_params: target and candidates.
        modules_to_ignore: modules of the model to leave alone; None for none.
    """

    def __init__(
        self,
        rank_select_scheme: RankSelectScheme,
        select_params: GreedySelectionParameters,
        modules_to_ignore: Sequence[nn.Module] | None = None,
    ) -> None:
        self.rank_select_scheme = rank_select_scheme
        self.select_params = select_params
        self.modules_to_ignore = [] if modules_to_ignore is None else modules_to_ignore


class SpatialSvdParameters:
    """Parameters of spatial SVD.

    Args:
        mode: who chooses the ratios.
        params: of that mode.
        multiplicity: ranks are multiples of it.
    """

    Mode = ParameterMode
    ManualModeParams = ManualParams
    AutoModeParams = AutoParams

    def __init__(self, mode: ParameterMode, params: ManualParams | AutoParams, multiplicity: int = 1) -> None:
        self.mode = mode
        self.mode_params = params
        self.multiplicity = multiplicity


class WeightSvdParameters:
    """Parameters of weight SVD.

    Args:
        mode: who chooses the ratios.
        params: of that mode.
        multiplicity: ranks are multiples of it.
    """

    Mode = ParameterMode
    ManualModeParams = ManualParams
    AutoModeParams = WeightSvdAutoParams

    def __init__(
        self, mode: ParameterMode, params: ManualParams | WeightSvdAutoParams, multiplicity: int = 1
    ) -> None:
        self.mode = mode
        self.mode_params = params
        self.multiplicity = multiplicity


class ChannelPruningParameters:
    """Parameters of channel pruning.

    Args:
        data_loader: yields (inputs, label) pairs or inputs; read once.
        num_reconstruction_samples: a tenth of it is the number of inputs that are taken, as in AIMET, but not
            fewer than 128 where the loader has them.
        allow_custom_downsample_ops: either is fine: no such operation is put into the model, since all layers
            that make or read the same channels are slimmed together.
        mode: who chooses the ratios.
        params: of that mode.
        multiplicity: channels that stay are multiples of it.
    """

    Mode = ParameterMode
    ManualModeParams = ManualParams
    AutoModeParams = AutoParams

    def __init__(
        self,
        data_loader: Iterable[object],
        num_reconstruction_samples: int,
        allow_custom_downsample_ops: bool,
        mode: ParameterMode,
        params: ManualParams | AutoParams,
        multiplicity: int = 1,
    ) -> None:
        self.data_loader = data_loader
        self.num_reconstruction_samples = num_reconstruction_samples
        self.allow_custom_downsample_ops = allow_custom_downsample_ops
        self.mode = mode
        self.mode_params = params
        self.multiplicity = multiplicity


Parameters = SpatialSvdParameters | WeightSvdParameters | ChannelPruningParameters
