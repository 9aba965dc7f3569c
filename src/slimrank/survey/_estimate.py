# SPDX-License-Identifier: Apache-2.0
"""How long a study will take, and in how much memory: told once layers and groups are known.

Forwards are counted and take what one was measured to take; what is decomposed or multiplied is counted in
multiply-adds, at the rate of a product that is measured. The factors below are fitted to runs of a dozen
seconds to minutes on a CPU.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from slimrank._progress import Expected, Overall, seconds_text
from slimrank.calibrate import GRADIENT_ROWS, GradientOptions
from slimrank.cost import (
    block_width,
    bytes_text,
    moment_bytes,
    row_view,
    row_width,
    rows_available,
    working_bytes,
)
from slimrank.forward import fixed_seed
from slimrank.forward import run as run_model
from slimrank.linalg import MAX_EXACT_COLUMNS
from slimrank.records import ChannelMap, GroupSpec, LayerSpec
from slimrank.survey._anchors import as_evaluations, count_samples
from slimrank.survey._blocks import blocks_alone, count_fit_samples, most_drops
from slimrank.survey._effort import effort_row
from slimrank.survey._group_memory import count_passes_of, group_needs
from slimrank.survey._groups import GroupSurvey, stored_groups
from slimrank.survey._layers import stored_curves
from slimrank.survey._session import Run, Session
from slimrank.survey._threads import busy_text

# Rows and columns of the product that is measured, and how often: some ten milliseconds in all.
_PRODUCT_SIZE, _PRODUCTS = 512, 3
# A backward pass beside a forward one.
_BACKWARD = 1.0
# Share of a forward that a measured divergence takes.
_ANCHOR_SHARE = 0.42
# Drops of each block that are measured, and forwards of both networks that one takes.
_DROPS, _FORWARDS_OF_DROP = 1.25, 1.4
# Multiply-adds in float64, which takes twice the time: of a layer's curves, of the pairs that are measured
# and of the fits of a drop, over one decomposition; of the order of a group's channels.
_CURVES, _PAIRS, _FITS, _ORDER = 14.0, 5.0, 7.0, 5.0
_FLOAT64_TIMES = 2.0
# What the allocator holds beside what is counted: observed.
_ALLOCATOR = 1.15
# Seconds that a layer, a group, one of its units and a divergence take, however small they are.
_LAYER, _GROUP, _UNIT, _DIVERGENCE = 0.02, 0.02, 0.0005, 0.003


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What was measured of model and machine.

    Attributes:
        sample: seconds of a forward, per sample.
        products: multiply-adds per second of a float32 product.
    """

    sample: float
    products: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a study will take, about.

    Attributes:
        seconds: wall time, of what an earlier run did not leave.
        n_bytes: peak beside the caller's model.
    """

    seconds: float
    n_bytes: int

    def __str__(self) -> str:
        return (
            f"study: about {seconds_text(self.seconds)} and {bytes_text(self.n_bytes)} beside the model "
            "(estimated)"
        )


def tell_estimate(session: Session, channels: ChannelMap, run: Run) -> None:
    """Tells what is left of a study will take, where progress is shown.

    Args:
        session: model, data and options.
        channels: groups and blocks of the model.
        run: progress, and where measurements are kept.
    """
    if not run.phases.is_shown or session.options.data_free:
        return
    layers = {spec.name: spec for spec in session.captured.layers}
    survey = GroupSurvey(session=session, layers=layers, channels=channels, grams={})
    known, known_groups = stored_curves(session.captured.layers, run), stored_groups(survey, run)
    specs = [
        spec
        for index, spec in enumerate(session.captured.layers)
        if spec.methods and spec.calls and index not in known
    ]
    groups = [group for index, group in survey.slimmable.items() if index not in known_groups]
    if specs or groups:
        speed = measure_speed(survey)
        run.phases.tell(str(estimate_study(survey, speed, specs, groups)))
        run.phases.overall = Overall("study", expected_phases(survey, speed, specs, groups))
        busy = busy_text()
        if busy is not None:
            run.phases.tell(busy)


def expected_phases(
    survey: GroupSurvey, speed: Speed, layers: Sequence[LayerSpec], groups: Sequence[GroupSpec]
) -> dict[str, Expected]:
    """What each phase of a study takes, as phases tell their steps.

    Args:
        survey: as in ``estimate_study``, like the others.
        speed: see there.
        layers: see there.
        groups: see there.
    """
    found = seconds_by_phase(survey, speed, layers, groups)
    n_fit, row = len(survey.session.feed.fit), effort_row(survey.session.options)
    # Divergences are measured while curves and groups are; how many there are shares their time.
    anchors = found.pop("anchors", 0.0)
    counts = {
        "curves": len(row.ratios_for(len(layers))) * len(layers),
        "groups": len(row.anchor_shares) * len(groups),
    }
    for name, count in counts.items():
        found[name] += anchors * count / max(1, sum(counts.values()))
    steps = {
        "gradients": n_fit,
        "moments": count_passes_of(survey, survey.session.budgets) * n_fit,
        "curves": len(layers),
        "groups": len(groups),
        "blocks": most_drops(survey.channels.blocks, row.blocks_alone),
    }
    return {
        name: Expected(seconds=seconds, steps=steps[name]) for name, seconds in found.items() if steps[name]
    }


def measure_speed(survey: GroupSurvey) -> Speed:
    """Times one micro-batch and one small product.

    Args:
        survey: model, data and map.
    """
    session = survey.session
    batch = next(iter(session.feed.stream(session.feed.fit[: max(1, session.feed.micro_size)])))
    device = next(session.original.parameters()).device
    matrix = torch.ones(_PRODUCT_SIZE, _PRODUCT_SIZE, device=device)
    # What the model draws, it would otherwise miss later: progress must not change results.
    with fixed_seed(session.original), torch.no_grad():
        product = _seconds_of(lambda: [matrix @ matrix for _ in range(_PRODUCTS)], device)
        forward = _seconds_of(lambda: run_model(session.original, batch), device)
    # A batch that cannot be cut counts as one sample.
    n_samples = batch.n_samples if session.feed.micro_size else 1
    return Speed(sample=forward / n_samples, products=_PRODUCTS * _PRODUCT_SIZE**3 / product)


def _seconds_of(action: Callable[[], object], device: torch.device) -> float:
    """Seconds of the second of two calls: a first one takes longer."""
    start = 0.0
    for _ in range(2):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        action()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return max(time.perf_counter() - start, 1e-9)


def estimate_study(
    survey: GroupSurvey, speed: Speed, layers: Sequence[LayerSpec], groups: Sequence[GroupSpec]
) -> Estimate:
    """What is left of a study.

    Args:
        survey: model, data and map.
        speed: of forwards and products.
        layers: whose curves are still to be measured.
        groups: the same.
    """
    seconds = sum(seconds_by_phase(survey, speed, layers, groups).values())
    return Estimate(seconds=seconds, n_bytes=peak_bytes(survey))


def seconds_by_phase(
    survey: GroupSurvey, speed: Speed, layers: Sequence[LayerSpec], groups: Sequence[GroupSpec]
) -> dict[str, float]:
    """Seconds of each phase, for ``estimate_study``."""
    session = survey.session
    n_fit, options, row = len(session.feed.fit), session.options, effort_row(session.options)
    needed = {spec.name: spec for spec in layers}
    for group in groups:
        needed |= {spec.name: spec for spec in survey.layers_needed(group).values()}
    rate = speed.products
    decompositions = sum(_decomposition(spec, n_fit) for spec in layers)
    found = {}
    if options.fisher and not options.data_free:
        draws = GradientOptions(
            likelihood=session.likelihood,
            outputs=session.outputs,
            draws=options.draws,
            in_full=row.samples_drawn_in_full,
        ).per_sample(n_fit)
        rows = sum(
            min(GRADIENT_ROWS, row_view(spec).n_positions * n_fit) * spec.n_outputs**2
            for spec in needed.values()
        )
        found["gradients"] = n_fit * speed.sample * (1 + _BACKWARD * draws) + draws * rows / rate
    if not options.data_free:
        rows = sum(
            rows_available(spec, n_fit) * row_width(spec) * block_width(spec) for spec in needed.values()
        )
        passes = count_passes_of(survey, session.budgets) if needed else 0
        found["moments"] = passes * n_fit * speed.sample + rows / rate
        found["anchors"] = sum(
            count * (_DIVERGENCE + _ANCHOR_SHARE * speed.sample * count_samples(session, count))
            for count in (
                len(row.ratios_for(len(layers))) * len(layers),
                len(row.anchor_shares) * len(groups),
            )
        )
        found["anchors"] += _PAIRS * _FLOAT64_TIMES * decompositions / rate
        found["blocks"] = _seconds_of_blocks(survey, speed)
    found["curves"] = _LAYER * len(layers) + _CURVES * _FLOAT64_TIMES * decompositions / rate
    found["groups"] = sum(
        _GROUP
        + _UNIT * group.units
        + _ORDER
        * _FLOAT64_TIMES
        * sum(_ordering(spec, n_fit) for spec in survey.layers_needed(group).values())
        / rate
        for group in groups
    )
    return found


def _seconds_of_blocks(survey: GroupSurvey, speed: Speed) -> float:
    blocks, most_alone = survey.channels.blocks, effort_row(survey.session.options).blocks_alone
    if not blocks or not most_alone:
        return 0.0
    runs = most_drops(blocks, most_alone)
    feed = survey.session.feed
    n_fit = count_fit_samples(survey.session, runs)
    n_samples = n_fit * feed.n_samples / len(feed.fit) * _FORWARDS_OF_DROP + count_samples(
        survey.session, as_evaluations(runs)
    )
    layers = survey.session.needs.layers
    fits = sum(_decomposition(spec, n_fit) for spec in layers) / max(1, len(layers))
    fit_seconds = _FITS * _FLOAT64_TIMES * fits / speed.products
    return _DROPS * len(blocks_alone(blocks, most_alone)) * (_LAYER + speed.sample * n_samples + fit_seconds)


def _decomposition(spec: LayerSpec, n_samples: int) -> int:
    """Multiply-adds of a decomposition: of the moments, of the weight with them, of the output metric."""
    width, n_outputs = block_width(spec), row_view(spec).n_outputs
    n_rows = rows_available(spec, n_samples)
    # Of few rows no moments are made.
    smaller = n_rows if n_rows <= width // 2 else width
    return spec.groups * width * smaller**2 + n_outputs * width * smaller + n_outputs**3


def _ordering(spec: LayerSpec, n_samples: int) -> int:
    """Multiply-adds of the order in which units of a layer's inputs go, and of its errors."""
    width, n_rows = block_width(spec), rows_available(spec, n_samples)
    of_one = width**3 if width <= MAX_EXACT_COLUMNS else width**2 * min(width, n_rows)
    return spec.groups * of_one


def peak_bytes(survey: GroupSurvey) -> int:
    """Memory beside the model at the most, about: what cannot be cut, and what is used of the budgets."""
    session = survey.session
    needs, budgets = session.needs, session.budgets
    moments = sum(moment_bytes(spec, needs.n_fit) for spec in needs.layers)
    replay = min(budgets.replay, needs.held_out_bytes)
    of_layers = [need.n_bytes for need in needs.of_layers()]
    of_groups = [need.n_bytes + min(moments, budgets.group_moments) + replay for need in group_needs(survey)]
    in_curves = needs.held + max(
        (working_bytes(spec, needs.n_fit) + moment_bytes(spec, needs.n_fit) for spec in needs.layers),
        default=0,
    )
    in_curves += min(moments, budgets.layer_moments) + replay
    return int(_ALLOCATOR * max([*of_layers, *of_groups, in_curves]))
