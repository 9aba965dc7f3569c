# SPDX-License-Identifier: Apache-2.0
"""Options that several commands share."""

from collections.abc import Callable
from typing import Literal, NotRequired, TypedDict, TypeVar

import click

import slimrank as sr
from slimrank.cli._command import PATH, Answer
from slimrank.cli._typed import split_names
from slimrank.records import EFFORTS, LIKELIHOODS, ChannelOrder, Effort

_Function = TypeVar("_Function", bound=Callable[..., Answer])


class FitText(TypedDict):
    """How data are read, as typed."""

    inputs: str | None
    outputs: tuple[str, ...]
    likelihood: tuple[str, ...]
    weights: tuple[str, ...]
    loss: str | None
    fisher: bool
    draws: int
    holdout: float
    seed: int


class StudyText(FitText):
    """What a study measures, as typed."""

    methods: tuple[str, ...]
    skip: tuple[str, ...]
    data_free: bool
    channel_order: ChannelOrder
    effort: Effort


class Budgets(TypedDict):
    """Budgets, and how ranks are rounded, as typed."""

    macs: str | None
    params: str | None
    bytes: str | None
    activation_bytes: str | None
    multiple_of: tuple[str, ...]
    select: NotRequired[Literal["optimal", "greedy", "uniform"]]


def _together(*options: Callable[[_Function], _Function]) -> Callable[[_Function], _Function]:
    """Several options as one decorator, shown in this order."""

    def add(function: _Function) -> _Function:
        for option in reversed(options):
            function = option(function)
        return function

    return add


memory_option = click.option(
    "--memory", metavar="SIZE", help="Memory beside the model, e.g. 1GB; less takes longer.  [default: 2.5GB]"
)
serve_option = click.option(
    "--serve", is_flag=True, help="Show the run in the browser meanwhile; the address goes to stderr."
)
quiet_option = click.option("--quiet", is_flag=True, help="No progress bars.")
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace a model that was saved in --out.")
_METHODS_HELP = (
    f"Only these: {', '.join(sr.METHODS)}; not by default: {', '.join(sr.MORE_METHODS)}; repeat, or separate "
    "by commas."
)
methods_option = click.option("--methods", multiple=True, help=_METHODS_HELP)
skip_option = click.option(
    "--skip",
    multiple=True,
    metavar="GLOB",
    callback=lambda _context, _option, given: split_names(given),
    help="Layers to leave alone; repeat, or separate by commas.",
)
architecture_option = click.option(
    "--architecture",
    is_flag=True,
    help="Save the architecture, too, as data: slimrank.load(DIR) then needs no class.",
)
fix_option = click.option(
    "--fix",
    "fixed",
    multiple=True,
    metavar="NAME=SETTING",
    help="Hold a layer, group or block: fc=weight_svd:0.4, conv1=channel_pruning:keep=24, fc=none; or drop.",
)
after_option = click.option(
    "--after",
    type=PATH,
    metavar="DIR",
    help="Compress the model saved in DIR once more; MODEL is the original.",
)
as_studied_options = _together(
    click.option(
        "--outputs",
        multiple=True,
        metavar="KEY|REF",
        help="As in the study, where it was made with a function.",
    ),
    click.option("--loss", metavar="REF", help="As in the study, where it was made with one."),
)
relative_to_option = click.option(
    "--relative-to",
    type=click.Choice(["model", "original"]),
    default="model",
    show_default=True,
    help="What keep ratios are shares of, after an earlier compression.",
)
widths_options = _together(
    click.option(
        "--uniform-widths", is_flag=True, help="The same width in all layers of a stack; no block goes."
    ),
    click.option(
        "--no-new-bias",
        "new_bias",
        flag_value=False,
        default=True,
        help="No bias for layers that have none.",
    ),
)
on_layer_option = click.option(
    "--on-layer", metavar="REF", help="Function of (model, layer name), called after each compressed layer."
)
fit_options = _together(
    click.option("--inputs", metavar="REF", help="Function of one batch that gives the model's inputs."),
    click.option(
        "--outputs",
        multiple=True,
        metavar="KEY|REF",
        help="Outputs that matter: a key or index, repeated for several; or one function.",
    ),
    click.option(
        "--likelihood",
        multiple=True,
        metavar="FAMILY|NAME=FAMILY",
        help=f"How outputs are read: {', '.join(LIKELIHOODS)}; per output with NAME=FAMILY, repeated.  "
        "[default: auto]",
    ),
    click.option(
        "--weight",
        "weights",
        multiple=True,
        metavar="NAME=VALUE",
        help="Weight of an output; repeated. Else 1.",
    ),
    click.option(
        "--loss", metavar="REF", help="Function of (outputs, original outputs): one loss for each sample."
    ),
    click.option(
        "--no-fisher", "fisher", flag_value=False, default=True, help="Use no output gradients, inputs only."
    ),
    click.option(
        "--draws",
        type=int,
        default=4,
        show_default=True,
        help="Label-free draws per sample, of up to a hundred samples; of more, fewer for each.",
    ),
    click.option("--holdout", type=float, default=0.2, show_default=True, help="Share kept out of fits."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of everything drawn."),
)
study_options = _together(
    fit_options,
    methods_option,
    skip_option,
    click.option("--data-free", is_flag=True, help="Use weights only; batches then only tell shapes."),
    click.option(
        "--channel-order",
        type=click.Choice(("obs", "magnitude", "random")),
        default="obs",
        show_default=True,
        help="By what channels of a group go first.",
    ),
    click.option(
        "--effort",
        type=click.Choice(EFFORTS),
        default="normal",
        show_default=True,
        help="How much is measured.",
    ),
)
budget_options = _together(
    click.option(
        "--macs",
        metavar="RATIO|N",
        help="Keep ratio of the MACs, in (0, 1], or 50%; or so many MACs at most.",
    ),
    click.option("--params", metavar="RATIO|N", help="Keep ratio of the parameters, or so many at most."),
    click.option(
        "--bytes", metavar="RATIO|SIZE", help="Keep ratio of the weight bytes, or so many at most, as 2MB."
    ),
    click.option(
        "--activation-bytes",
        metavar="RATIO|SIZE",
        help="Keep ratio of the peak of the activations of one sample, or so many bytes at most, as 2MB.",
    ),
    click.option(
        "--multiple-of",
        multiple=True,
        metavar="N|auto|GLOB=N",
        help="Ranks and widths are multiples of N, or of what runtimes compute at full speed; per layer or "
        "group with GLOB=N, the first match wins.  [default: auto]",
    ),
)
