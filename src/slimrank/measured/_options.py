# SPDX-License-Identifier: Apache-2.0
"""What the caller asked of a study: the one list of its options."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields

from slimrank._errors import FileError, OptionError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank._numbers import plain_number
from slimrank.files import Json
from slimrank.records import (
    ALL_METHODS,
    CHANNEL_ORDERS,
    EFFORTS,
    METHODS,
    ChannelOrder,
    Effort,
    LikelihoodChoice,
    Method,
    Weights,
    likelihood_of,
    weights_of,
)

# Options that came later than the first files, and what they are where a file does not name them.
_LATER = {"weights": None, "effort": "normal"}


# The name of the class and the order of its fields are part of every study's fingerprint, by its repr.
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the caller asked of a study.

    The public calls and the command line repeat these names and defaults in their signatures;
    ``tests/api/test_options.py`` compares them with this list.

    Attributes:
        methods: methods to measure, in the order of the method table.
        skip: layer-name globs to leave alone.
        likelihood: how outputs are read, or "auto"; of all, or of each.
        fisher: gather output gradients.
        draws: label-free draws per sample, of up to a hundred samples; of more, fewer for each.
        holdout: share of the samples kept out of fits.
        data_free: use weights only.
        channel_order: by what channels of a group go first.
        seed: of everything drawn.
        weights: of the divergence of each output; None for 1. It came later than fingerprints: not in the
            repr, a part of what outputs are tied to.
        effort: how much is measured. It came later, too: in the repr only where it is another than normal.
    """

    methods: tuple[Method, ...] = METHODS
    skip: tuple[str, ...] = ()
    likelihood: LikelihoodChoice = "auto"
    fisher: bool = True
    draws: int = 4
    holdout: float = 0.2
    data_free: bool = False
    channel_order: ChannelOrder = "obs"
    seed: int = 0
    weights: Weights = field(default=None, repr=False)
    effort: Effort = field(default="normal", repr=False)

    def __post_init__(self) -> None:
        for name in ("draws", "holdout", "seed"):
            # Of whatever kind it is given, a number is the same in files and fingerprints.
            object.__setattr__(self, name, plain_number(getattr(self, name)))

    def __repr__(self) -> str:
        shown = [option.name for option in fields(self) if option.repr]
        if self.effort != "normal":
            shown.append("effort")
        return f"Options({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @property
    def typed(self) -> str:
        """As they are typed: the seed, and what is another than usual: "seed=0, draws=2"."""
        usual = Options()
        changed = [
            f"{option.name}={getattr(self, option.name)!r}"
            for option in fields(self)
            if option.name != "seed" and getattr(self, option.name) != getattr(usual, option.name)
        ]
        return ", ".join([f"seed={self.seed}", *changed])

    @property
    def has_bias(self) -> bool:
        """Whether pairs carry a bias even where the layer has none: it absorbs the mean, which data tell."""
        return not self.data_free


def methods_in_order(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Methods as a caller typed them, in the order of the method table, once each.

    Args:
        methods: names; unknown ones come last, for ``check_options`` to refuse.

    Returns:
        The same methods.

    Raises:
        OptionError: one text instead of several.
    """
    if isinstance(methods, str):
        raise OptionError(f"methods is the text {methods!r}; give a tuple: methods=({methods!r},)")
    unknown = tuple(method for method in methods if method not in ALL_METHODS)
    return (*(method for method in ALL_METHODS if method in methods), *unknown)


def check_options(options: Options) -> None:
    """Refuses options outside their values.

    Raises:
        UnknownNameError: a method that does not exist.
        OptionError: a number out of range.
    """
    likelihood_of(options.likelihood)
    weights_of(options.weights)
    if not options.methods:
        raise OptionError(f"methods is empty; give some of {', '.join(ALL_METHODS)}")
    for method in options.methods:
        if method not in ALL_METHODS:
            raise UnknownNameError(f"method {method!r} does not exist; {nearest(method, ALL_METHODS)}")
    if options.channel_order not in CHANNEL_ORDERS:
        close = nearest(str(options.channel_order), CHANNEL_ORDERS)
        raise UnknownNameError(f"channel_order={options.channel_order!r} does not exist; {close}")
    if options.effort not in EFFORTS:
        close = nearest(str(options.effort), EFFORTS)
        raise UnknownNameError(f"effort={options.effort!r} does not exist; {close}")
    if not isinstance(options.draws, int) or options.draws < 1:
        raise OptionError(f"draws={options.draws!r}; give a whole number of at least 1 (4 is a good one)")
    if not isinstance(options.seed, int) or options.seed < 0:
        raise OptionError(f"seed={options.seed!r}; give a whole number of at least 0")
    if not isinstance(options.holdout, int | float) or not 0 < options.holdout < 1:
        raise OptionError(f"holdout={options.holdout!r}; give a share between 0 and 1, such as 0.2")


def options_to_json(options: Options) -> dict[str, Json]:
    """Options as JSON, one entry a field; those that came after the first files only where they are set."""
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(options).items()
        if name not in _LATER or value != _LATER[name]
    }


def options_from_json(value: Mapping[str, Json]) -> Options:
    """Options that ``options_to_json`` wrote.

    Raises:
        FileError: an option is missing or of another type.
    """
    missing = [option.name for option in fields(Options) if option.name not in (*value, *_LATER)]
    if missing:
        raise FileError(f"study.json: options lacks {listed(missing)}; study again")
    return Options(
        methods=tuple(method for method in ALL_METHODS if method in _list_of_option(value, "methods")),
        skip=tuple(str(pattern) for pattern in _list_of_option(value, "skip")),
        likelihood=likelihood_of(value["likelihood"]),
        fisher=bool(value["fisher"]),
        draws=int(str(value["draws"])),
        holdout=float(str(value["holdout"])),
        data_free=bool(value["data_free"]),
        channel_order=str(value["channel_order"]),  # type: ignore[arg-type]
        seed=int(str(value["seed"])),
        weights=weights_of(value.get("weights")),
        effort=str(value.get("effort", "normal")),  # type: ignore[arg-type]
    )


def _list_of_option(value: Mapping[str, Json], name: str) -> list[Json]:
    entries = value[name]
    if not isinstance(entries, list):
        raise FileError(f"study.json: options: {name} is {type(entries).__name__}, not a list; study again")
    return entries
