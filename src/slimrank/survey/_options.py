# SPDX-License-Identifier: Apache-2.0
"""What the caller asked of a study: the one list of its options."""

from collections.abc import Mapping
from dataclasses import dataclass

from slimrank._errors import FileError, OptionError, UnknownNameError
from slimrank._names import nearest
from slimrank.calibrate import LikelihoodChoice
from slimrank.files import Json
from slimrank.methods import METHODS
from slimrank.records import CHANNEL_ORDERS, ChannelOrder, Method


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller asked of a study.

    Attributes:
        methods: methods to measure.
        skip: layer-name globs to leave alone.
        likelihood: how outputs are read, or "auto".
        fisher: gather output gradients.
        draws: label-free draws per sample.
        holdout: share of the samples kept out of fits.
        data_free: use weights only.
        channel_order: by what channels of a group go first.
        seed: of everything drawn.
    """

    methods: tuple[Method, ...]
    skip: tuple[str, ...]
    likelihood: LikelihoodChoice
    fisher: bool
    draws: int
    holdout: float
    data_free: bool
    channel_order: ChannelOrder
    seed: int

    @property
    def has_bias(self) -> bool:
        """Whether pairs carry a bias even where the layer has none: it absorbs the mean, which data tell."""
        return not self.data_free


def check_options(options: Options) -> None:
    """Refuses options outside their values.

    Raises:
        UnknownNameError: a method that does not exist.
        OptionError: a number out of range.
    """
    if not options.methods:
        raise OptionError(f"methods is empty; give some of {', '.join(METHODS)}")
    for method in options.methods:
        if method not in METHODS:
            raise UnknownNameError(f"method {method!r} does not exist; {nearest(method, METHODS)}")
    if options.channel_order not in CHANNEL_ORDERS:
        close = nearest(str(options.channel_order), CHANNEL_ORDERS)
        raise UnknownNameError(f"channel_order={options.channel_order!r} does not exist; {close}")
    if not isinstance(options.draws, int) or options.draws < 1:
        raise OptionError(f"draws={options.draws!r}; give a whole number of at least 1 (4 is a good one)")
    if not isinstance(options.seed, int) or options.seed < 0:
        raise OptionError(f"seed={options.seed!r}; give a whole number of at least 0")
    if not isinstance(options.holdout, int | float) or not 0 < options.holdout < 1:
        raise OptionError(f"holdout={options.holdout!r}; give a share between 0 and 1, such as 0.2")


def options_to_json(options: Options) -> Json:
    return {
        "methods": list(options.methods),
        "skip": list(options.skip),
        "likelihood": options.likelihood,
        "fisher": options.fisher,
        "draws": options.draws,
        "holdout": options.holdout,
        "data_free": options.data_free,
        "channel_order": options.channel_order,
        "seed": options.seed,
    }


def options_from_json(value: Mapping[str, Json]) -> Options:
    return Options(
        methods=tuple(method for method in METHODS if method in list_of(value, "methods")),
        skip=tuple(str(pattern) for pattern in list_of(value, "skip")),
        likelihood=str(value["likelihood"]),  # type: ignore[arg-type]
        fisher=bool(value["fisher"]),
        draws=int(str(value["draws"])),
        holdout=float(str(value["holdout"])),
        data_free=bool(value["data_free"]),
        channel_order=str(value["channel_order"]),  # type: ignore[arg-type]
        seed=int(str(value["seed"])),
    )


def object_of(facts: Mapping[str, Json], key: str) -> dict[str, Json]:
    value = facts.get(key)
    if not isinstance(value, dict):
        raise FileError(f"study.json: {key} is {type(value).__name__}, not an object; study again")
    return value


def list_of(facts: Mapping[str, Json], key: str) -> list[Json]:
    value = facts.get(key)
    if not isinstance(value, list):
        raise FileError(f"study.json: {key} is {type(value).__name__}, not a list; study again")
    return value
