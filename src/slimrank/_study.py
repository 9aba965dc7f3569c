# SPDX-License-Identifier: Apache-2.0
"""The study of a model: measured once, planned and applied any number of times."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Literal, TypedDict, Unpack

import torch
from torch import Tensor, nn

from slimrank._errors import (
    BudgetError,
    FileError,
    NonFiniteError,
    OptionError,
    StudyError,
    UnknownNameError,
)
from slimrank._live_view import shown_live, shown_live_in_run_dir
from slimrank._names import nearest
from slimrank._numbers import whole_number
from slimrank._progress import EVENTS_FILE, Event, EventFile, Listener, Overall, Phases
from slimrank._result import Result, Unrounded
from slimrank._verify import build_result
from slimrank.calibrate import OwnLossFn
from slimrank.capture import describe_layers
from slimrank.files import Json, Store, check_folder
from slimrank.fitting import OnLayer, check_on_layer
from slimrank.forward import OutputChoice, eval_mode, kept_text, out_of_memory_told, outside_inference_mode
from slimrank.interop import Received, receive
from slimrank.measured import (
    Options,
    StudyRecord,
    check_fingerprint,
    check_options,
    fingerprint_in,
    methods_in_order,
    read_study,
)
from slimrank.pareto import Pareto, ParetoPoint, budgets_between, merged, pareto_facts, trace
from slimrank.peaks import plan_within_peak, profile_peaks
from slimrank.plan import (
    FixedSettings,
    LatencyTable,
    MultipleOf,
    Plan,
    PlanSource,
    Rounding,
    SettingLike,
    Step,
    Structure,
    are_same_steps,
    block_damage_at,
    check_structure,
    check_table,
    damage_at,
    group_damage_at,
    planned_latency,
    structure_of,
)
from slimrank.planning import (
    Selected,
    check_steps,
    choose_plan,
    comparable_methods,
    edit_plan,
    plan_again,
    plan_unrounded,
    without_new_biases,
)
from slimrank.records import (
    LATENCY,
    METHODS,
    METRICS,
    BlockDamage,
    Budgeted,
    ChannelOrder,
    Cost,
    Curves,
    Effort,
    GroupCurves,
    Layers,
    LikelihoodChoice,
    Method,
    Note,
    PeakPoint,
    PlannedActivations,
    Weights,
    likelihood_of,
    ratio_of,
    weights_of,
)
from slimrank.report import (
    MadeFrom,
    Plot,
    draw_figure,
    explain_layer,
    format_damage,
    render_groups,
    render_layers,
    study_data,
    study_notebook,
    with_times,
    write_page,
)
from slimrank.scores import Scores, check_scores, scores_facts
from slimrank.scoring import ScoreFn, score_model
from slimrank.select import (
    Budget,
    bytes_limit,
    check_peak,
    meant_percent,
    reachable_floor,
    select_plan,
)
from slimrank.survey import (
    Claim,
    DataSource,
    Inputs,
    Known,
    MemoryOption,
    Run,
    Session,
    Skip,
    as_planned,
    check_previous,
    check_previous_cost,
    check_saved_loss,
    check_skip,
    claim,
    fingerprint_of,
    globs_of,
    listeners_of,
    measure,
    open_session,
    previous_notes,
    read_as_stored,
    restored_copy,
    saved_grams,
    saved_outputs,
    saved_source,
    write_study,
)

# How often a plan is made for less, where the built model counts above a budget.
_MAX_BUDGET_TRIES = 4


def _directory_of(arguments: Mapping[str, object]) -> Path | None:
    """Where later work on a study writes its events, of the arguments of a call."""
    return session_of(arguments["study"] if "study" in arguments else arguments.get("self")).run_dir


# Of calls that take a study.
shown_live_of_study = shown_live(
    _directory_of, "give the study one by run_dir= of slimrank.study or of Study.load"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Study:
    """What was measured of a model: layers, costs, and damage by rank.

    Made by ``slimrank.study`` or ``Study.load``.

    Attributes:
        structure: every layer, in execution order.
        before: counted cost of the model, for one sample.
        has_bias: whether pairs carry a bias even where the layer has none (it absorbs the mean).
        curves: cost and damage by rank, per layer and form; ``curves["conv1"]`` are those of one layer,
            ``curves.to_dataframe()`` is a table of pandas.
        group_curves: damage by the channels that stay, per channel group; also by name, and as a table.
        block_damages: of replacing blocks by the identity, each on top of those that cost less.
        methods: the methods that were measured.
        grams: second moments of output gradients, (C_out, C_out) by layer.
        unit: of damage.
        notes: what the user should know.
        seconds: wall time of each phase.
        fingerprint: ties the study to structure, weights, inputs and options.
        previous: the plan that made the model, where it had been compressed before.
    """

    structure: Structure
    before: Cost
    has_bias: bool
    curves: Curves
    methods: tuple[Method, ...]
    grams: Mapping[str, Tensor]
    unit: str
    notes: tuple[Note, ...]
    seconds: Mapping[str, float]
    fingerprint: Mapping[str, str]
    previous: Plan | None = None
    group_curves: GroupCurves = field(default_factory=GroupCurves)
    block_damages: tuple[BlockDamage, ...] = ()
    _session: Session | None = None
    # What was asked, of a study that was read without its model.
    _options: Options | None = None

    @property
    def layers(self) -> Layers:
        """Every layer, in execution order; also by name, and as a table of pandas."""
        return Layers(self.structure.layers.values())

    def __repr__(self) -> str:
        count = sum(1 for spec in self.layers if spec.methods)
        return (
            f"Study({count} of {len(self.layers)} layers compressible, "
            f"{self.before.macs:,} MACs, {self.before.params:,} params)"
        )

    def _repr_html_(self) -> str:
        return study_notebook(self.layers, self.before, self.notes, channels=self.structure.channels)

    def summary(self) -> str:
        """A table of all layers: shape, MACs, params, methods that apply, or why none does."""
        return render_layers(self.layers, self.before, self.notes)

    def groups(self) -> str:
        """A table of all channel groups: units, who makes and reads them, or why they stay."""
        return render_groups(
            self.structure.channels, self.group_curves, self.block_damages, before=self.before
        )

    def explain(self, layer: str, plan: Plan | None = None) -> str:
        """What was found of a layer, what a plan does to it and why, and what other choices would cost.

        Args:
            layer: dotted name.
            plan: of this study; None for what could be done to the layer alone.

        Returns:
            A paragraph, and a table of choices: what each leaves of the MACs of the layer, and of the model
            that was studied, all else as in the plan, and its predicted damage.

        Raises:
            UnknownNameError: no such layer.
            OptionError: no plan.
            PlanError: the plan belongs to another model.
        """
        if plan is not None:
            check_plan(plan)
            check_steps(self._record, plan)
        return explain_layer(self, layer, plan, unit=self.unit).text

    def report(
        self,
        path: str | os.PathLike[str],
        *,
        pareto: Pareto | None = None,
        scores: Scores | None = None,
        latencies: LatencyTable | None = None,
    ) -> None:
        """Writes what was found as one self-contained HTML page, and its data as JSON beside it.

        Args:
            path: of the page; the data have its name with the suffix ``.json``.
            pareto: plans of this study over their cost (``Study.pareto``), to draw.
            scores: an eval-score table of this study, to show as a map of colours.
            latencies: a table of measured times of this network (``slimrank.measure_latency``), to show the
                time of each layer beside its costs.

        Raises:
            FileError: it cannot be written.
            OptionError: something else than a curve or a table.
            PlanError: ``pareto`` is of another model.
            ScoreError: ``scores`` is of another study.
            LatencyError: ``latencies`` is of another network.
        """
        facts = None if pareto is None else pareto_facts(pareto, self.structure)
        table = None if scores is None else scores_facts(scores)
        if scores is not None:
            check_scores(scores, self.fingerprint)
        data = self._page_data(facts, table)
        if latencies is not None:
            data = with_times(data, latencies, Step(structure=self.structure, layers={}))
        write_page(Path(path), data)

    def plot(self, kind: str = "damage", names: Sequence[str] | None = None) -> Plot:
        """A figure for papers, by matplotlib.

        Args:
            kind: "damage" for damage over what stays, a small picture for each layer and group; "costs" for
                the MACs of each layer.
            names: of layers and groups; None for all.

        Returns:
            A ``matplotlib.figure.Figure``; save it by ``figure.savefig(path)``.

        Raises:
            UnknownNameError: no such kind, layer or group.
            OptionError: nothing to draw.
            MissingPackageError: matplotlib is not installed.
        """
        return draw_figure(self._page_data(), kind, names)

    def _page_data(self, pareto: Json = None, scores: Json = None) -> dict[str, Json]:
        """What the report of this study is drawn from."""
        return study_data(
            "Study",
            self.layers,
            self.before,
            self.notes,
            unit=self.unit,
            seconds=self.seconds,
            made=self._made(),
            channels=self.structure.channels,
            curves=self.curves,
            group_curves=self.group_curves,
            blocks=self.block_damages,
            pareto=pareto,
            scores=scores,
        )

    def _typed_options(self) -> Options | None:
        """What was asked for when it was measured; None of a study that somebody put together."""
        return self._options if self._session is None else self._session.options

    @property
    def _record(self) -> StudyRecord:
        """What plans are chosen from, and what a directory keeps."""
        return StudyRecord(
            structure=self.structure,
            before=self.before,
            has_bias=self.has_bias,
            curves=self.curves,
            group_curves=self.group_curves,
            block_damages=self.block_damages,
            methods=self.methods,
            unit=self.unit,
            notes=self.notes,
            seconds=self.seconds,
            fingerprint=self.fingerprint,
            previous=self.previous,
            options=self._typed_options(),
        )

    def _made(self) -> MadeFrom:
        """What the study can be made again by."""
        options = self._typed_options()
        call = None if options is None else f"slimrank.study(model, batches, {options.typed})"
        seed = None if options is None else options.seed
        return MadeFrom(call=call, seed=seed, fingerprint=self.fingerprint)

    def plan(
        self,
        *,
        macs: float | str | None = None,
        params: float | str | None = None,
        bytes: float | str | None = None,
        latency: float | str | None = None,
        activation_bytes: float | str | None = None,
        select: Literal["optimal", "greedy", "uniform"] = "optimal",
        multiple_of: MultipleOf = "auto",
        methods: Sequence[Method] | None = None,
        skip: Skip = (),
        scores: Scores | None = None,
        latencies: LatencyTable | None = None,
        monotonic: bool = False,
        interpolate: bool = False,
        relative_to: Literal["model", "original"] = "model",
        fixed: FixedSettings | None = None,
        uniform_widths: bool = False,
        new_bias: bool = True,
    ) -> Plan:
        """Chooses a rank for every layer under a budget. Runs no model, but for activations; writes no file.

        Args:
            macs: keep ratio of the MACs, in (0, 1], also as "50%"; or a whole number above 1, for so many
                MACs of one sample at most. None for no such budget. Several budgets hold together.
            params: keep ratio of the params, or so many at most.
            bytes: keep ratio of the bytes, or so many at most, also as "2MB" or "1.5MiB".
            latency: keep ratio of the measured time of one batch, of that of the original in float32, also
                as "60%"; or a time, such as "4.5ms". Needs ``latencies``.
            activation_bytes: keep ratio of the peak of the activations of one sample (see
                ``slimrank.activation_bytes``), also as "50%"; or so many bytes at most, also as "2MB". The
                first such plan of a study runs a variant of the model for each group and form, and each plan
                is counted by a run of what it leaves. Its ``gap`` is not certified.
            select: "optimal" (exact, with a certified gap), "greedy" (AIMET's) or "uniform".
            multiple_of: ranks, and widths in outputs of the layer that makes the channels, are multiples of
                this: a number, "auto", or name glob -> one of these, first match wins. "auto" takes 16, 8 or
                4, which runtimes compute at full speed, by the size of the layer, and lower numbers where a
                budget leaves them no room; ``Plan.multiple_of`` tells what was used. With a latency "auto"
                means the step of the table, below which time stands still, and numbers are raised to
                multiples of it.
            methods: fewer than were measured; None for all. Without data, None leaves channel pruning out
                where there are pairs to choose from: shares of weight energy do not compare the two.
            skip: globs on the names of layers, groups and blocks to leave alone, or modules of the model that
                was studied; a group that a skipped layer makes or reads stays whole.
            scores: an eval-score table of this study (``slimrank.measure_scores``): choose by loss of score
                instead of predicted damage, among the ranks and widths that were tried, rounded up to
                multiples; layers and groups not in it are left alone, blocks too. What scores better
                compressed than untouched counts as losing nothing.
            latencies: a table of measured times of this network (``slimrank.measure_latency``), for
                ``latency``. Pairs that the table has no times of, or that are slower than what they replace,
                are left out.
            monotonic: first make the losses of each layer and group monotone, by isotonic regression; with
                ``scores``.
            interpolate: offer every rank and width between the tried ones, losses interpolated; with
                ``scores``.
            relative_to: what keep ratios are shares of: the "model" that was studied, or the "original" where
                that model had been compressed before.
            fixed: settings that are not chosen any more, as in ``Plan.manual``: layer, group or block ->
                setting, or the path of a file of them; None for a name leaves alone all that has it, as in
                ``edit``. All else is chosen around them, within the budgets. Ranks and widths are taken as
                they stand, whatever ``multiple_of``; what is fixed wins over ``methods`` and ``skip``. Blocks
                that hold something fixed stay. ``Plan.fixed`` has the names.
            uniform_widths: groups whose names differ in numbers alone, such as those of all layers of a
                transformer, keep the same number of units, and no block is dropped: what reads a model by
                one width for all layers then reads this one. A stack of which one group cannot go, or is
                skipped, stays whole. A fixed width is that of its whole stack. Ranks are not tied: pass
                ``methods=("channel_pruning",)`` for none.
            new_bias: False gives no bias to layers that have none; their fits then hold the mean as well as
                they can. Damages are predicted as with one, and so are a little low.

        Returns:
            The plan; its counted cost and peak, and its predicted time, are never above a budget.

        Raises:
            BudgetError: a budget that is no keep ratio and no number, above what the model costs already,
                or out of reach; the message names the floor.
            UnknownNameError: a method, selector or pattern that does not exist.
            ScoreError: a table of another study.
            LatencyError: a table of times of another network.
            StudyError: ``activation_bytes``, and the study was loaded without a model.
            OptionError: ``monotonic`` or ``interpolate`` without ``scores``, ``latency`` without
                ``latencies`` or the other way round, an unknown ``relative_to``, or a fixed setting of the
                wrong kind; ``new_bias=False`` where an earlier step made new biases; with ``uniform_widths``
                fixed widths of one stack that differ or that not all of it can take, or a fixed drop.
            RankError: a fixed rank, ratio or width that cannot be.
            PlanError: something inside a block that is fixed to go is fixed too.
            FileError: the file of what is fixed cannot be read.
        """
        peak = self._asked_peak(activation_bytes, relative_to)
        return choose_plan(
            self._record,
            macs=macs,
            params=params,
            bytes=bytes,
            latency=latency,
            select=select,
            multiple_of=multiple_of,
            methods=methods,
            skip=skipped_globs(self, skip),
            scores=scores,
            latencies=latencies,
            monotonic=monotonic,
            interpolate=interpolate,
            relative_to=relative_to,
            fixed=fixed,
            uniform_widths=uniform_widths,
            new_bias=new_bias,
            within_peak=None if peak is None else partial(self._within_peak, peak),
        )

    def _asked_peak(self, asked: float | str | None, relative_to: str) -> Budget | None:
        """What may be left of the peak of activations; None where nothing is asked."""
        if asked is None:
            return None
        budget = check_peak(asked)
        if relative_to == "original":
            raise OptionError(
                "relative_to='original' is for costs of weights: activations are counted on the model that "
                "was studied; leave it out beside activation_bytes="
            )
        session_of(self)
        return budget

    def _within_peak(
        self,
        budget: Budget,
        selected: Selected,
        lowest_at: Callable[[PeakPoint], float],
    ) -> tuple[Plan, Rounding]:
        """The plan whose peak of activations is within a budget."""
        session = session_of(self)
        if not session.profiles:
            profile = profile_peaks(
                session.original, self.structure, session.captured.sample, curves=self.curves
            )
            session.profiles.append(profile)
        profile = session.profiles[0]
        words = budget.words or f"{budget.ratio:g}"
        text = f"activation_bytes={words}"
        if budget.number is not None and budget.number > profile.peak:
            raise BudgetError(
                f"budget: {text} is above what the model needs: its peak has less already, {profile.peak:,} "
                "bytes; give less, or leave this budget out"
            )
        limit = bytes_limit(budget, profile.peak)
        chosen, rounding, counted = plan_within_peak(
            profile,
            limit,
            lambda points, most: selected({point: Budget(number=most, words=words) for point in points}),
            lowest_at,
            text=text,
            hint=meant_percent(budget, "activation_bytes"),
        )
        activations = PlannedActivations(
            asked=budget.share(profile.peak), before=profile.peak, after=counted, words=budget.words
        )
        # What the bytes at a place come to is known nearly: no bound on other choices follows from that.
        gap = chosen.gap if limit >= profile.peak else None
        return replace(chosen, gap=gap, activations=activations), rounding

    def edit(self, plan: Plan, settings: Mapping[str, SettingLike] | str | os.PathLike[str]) -> Plan:
        """A plan with other settings for some layers, groups or blocks, and what it then predicts.

        Args:
            plan: of this study; all that is not named stays as it is, channels and blocks too.
            settings: as in ``Plan.manual``: layer, group or block -> setting, or the path of a file of them.
                A layer may lose channels and become a pair: what is said of one leaves the other. None leaves
                alone all that has the name. What is inside a block that is now dropped leaves the plan.
                Ranks and widths round up to the plan's multiples if they were given; where "auto" chose
                them, what you say is taken as it stands.

        Returns:
            A new plan with its predicted ``damage``; its ``select`` is "manual", and ``gap``, ``budgets``,
            ``score_loss``, ``latency`` and ``activations``, which belonged to the choice, are empty.

        Raises:
            UnknownNameError: no such layer, group, block, method or form.
            OptionError: no plan, or a setting of the wrong kind.
            RankError: a rank, ratio or width that cannot be; or a rank of the plan that its layer, slimmed
                anew, cannot take.
            FileError: the file cannot be read.
            PlanError: the plan belongs to another model, or something inside a dropped block is named.
        """
        check_plan(plan)
        return edit_plan(self._record, plan, settings)

    @shown_live_of_study
    @outside_inference_mode
    def pareto(
        self,
        metric: Budgeted = "macs",
        *,
        points: int = 12,
        measure: bool = True,
        score_fn: ScoreFn | None = None,
        latencies: LatencyTable | None = None,
        serve: bool = False,
    ) -> Pareto:
        """Plans from near the smallest model that can be reached to near the whole one, each measured.

        Budgets stand at even distances. One that no plan keeps is left out, and budgets that give one plan
        are one point, so there may be fewer points than asked for.

        Args:
            metric: what budgets are of: "macs", "params" or "bytes"; or "latency", with ``latencies``.
            points: budgets to try, at least 2.
            measure: build the model of each plan, as ``apply`` does, and measure it. What is fitted is kept
                in the study's ``run_dir``, so that a killed call that is made again goes on quickly. False
                gives predictions alone, in seconds, and needs no model.
            score_fn: ``score_fn(model) -> float``, higher is better, on the original and on each built model;
                None for the held-out divergence.
            latencies: a table of times of this network (``slimrank.measure_latency``), for "latency": costs
                are what it predicts. Of a table of int8 files, too, it is the float model that is measured.
            serve: as in ``slimrank.study``; shows the study's ``run_dir``.

        Returns:
            The curve; ``knee()`` gives the point below which damage rises fastest.

        Raises:
            UnknownNameError: no such metric.
            OptionError: fewer than 2 points, "latency" without ``latencies`` or they without it, a
                ``score_fn`` that is no function or that nothing is measured by; ``serve`` without a
                directory.
            LatencyError: a table of another network.
            ScoreError: ``score_fn`` fails or returns no finite number.
            StudyError: models are to be built, and the study was loaded without one.
        """
        table = self._pareto_table(metric, points, latencies)
        _check_score_fn(score_fn, measure=measure)
        if measure and self._session is None:
            raise StudyError(
                "pareto: this study was loaded without a model, so nothing can be built and measured; pass "
                "Study.load(dir, model=build()), or measure=False for predictions alone"
            )

        # First of all, since a function that fails shall not do so after the work.
        baseline = (
            None
            if score_fn is None
            else score_model(restored_copy(session_of(self)), score_fn, "the original")
        )

        def plan_at(budget: float) -> Plan:
            ratios: dict[str, float] = {metric: budget}
            return self.plan(latencies=table, **ratios)  # type: ignore[arg-type]

        def cost_of(plan: Plan) -> float:
            if metric == LATENCY and table is not None:
                return planned_latency(table, plan.steps[-1], 1.0).predicted
            return 1.0 if metric == LATENCY else ratio_of(plan.start, plan.after, metric)

        times = None if table is None else table.times
        floor = reachable_floor(self, metric, methods=comparable_methods(self._record), times=times)
        # Of times, the network as it stands may be well below the original in float32.
        whole = 1.0 if times is None else min(1.0, times.before / times.reference)
        traced = trace(budgets_between(floor, whole, int(points)), plan_at, cost_of)
        if not measure:
            return Pareto(metric=metric, points=traced, unit=self.unit)
        measured = self._measured_points(metric, traced, cost_of, score_fn)
        return Pareto(
            metric=metric,
            points=merged(measured),
            unit=self.unit,
            measured_unit=session_of(self).likelihood.unit if score_fn is None else "score",
            baseline=baseline,
        )

    def _pareto_table(
        self, metric: object, points: object, latencies: LatencyTable | None
    ) -> LatencyTable | None:
        """The table of times where the curve is over a latency; what cannot be is refused."""
        if metric not in (*METRICS, LATENCY):
            close = nearest(str(metric), (*METRICS, LATENCY))
            raise UnknownNameError(f"pareto: metric {metric!r} does not exist; {close}")
        number = whole_number(points)
        if number is None or number < 2:
            raise OptionError(f"pareto: points={points!r}; give a whole number of at least 2, such as 12")
        if metric == LATENCY and latencies is None:
            raise OptionError(
                "pareto: metric='latency' needs measured times; pass "
                "latencies=slimrank.measure_latency(study), or a table that was saved: "
                "slimrank.Latencies.load(path)"
            )
        if metric != LATENCY and latencies is not None:
            raise OptionError(
                f"pareto: latencies= is given with metric={metric!r}; pass metric='latency', or leave it out"
            )
        return None if latencies is None else check_table(latencies, self.structure)

    def _measured_points(
        self,
        metric: Budgeted,
        points: Sequence[ParetoPoint],
        cost_of: Callable[[Plan], float],
        score_fn: ScoreFn | None,
    ) -> list[ParetoPoint]:
        """Each point with what its model loses or scores; the models are let go."""
        session = session_of(self)
        phases = session.phases()
        measured = []
        for number, point in enumerate(points, start=1):
            result = self.apply(point.plan)
            built = result.plan
            if score_fn is None:
                value, text = result.divergence, f"{format_damage(result.divergence)} {result.unit}"
            else:
                with eval_mode(result.model):
                    value = score_model(result.model, score_fn, f"the model of {metric}={point.budget:.4f}")
                text = f"score {value:.6g}"
            done = replace(point, measured=value)
            if not are_same_steps(built.steps, point.plan.steps):
                # A group that could not be slimmed after all: what was measured belongs to what was built.
                done = replace(done, plan=built, cost=cost_of(built), predicted=built.damage)
            measured.append(done)
            phases.tell(f"pareto: {number} of {len(points)}, {metric} {done.cost:.4f}: {text}")
        return measured

    @shown_live_of_study
    @outside_inference_mode
    def apply(
        self, plan: Plan, *, on_layer: OnLayer | None = None, sequential: bool = True, serve: bool = False
    ) -> Result:
        """Builds the compressed model, layer by layer, and measures it.

        Where the built model counts above a budget of the plan, because a router sends rows to other experts
        or a group could not be slimmed, it is planned and built again for less, and a note says so.

        Args:
            plan: of this study, or of another study of the same architecture.
            on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer, in order.
            sequential: fit each layer to the inputs of the compressed model (guarded on held-out samples);
                False fits weights to the original's inputs, and only the bias to the new ones.
            serve: as in ``slimrank.study``; shows the study's ``run_dir``.

        Returns:
            The result.

        Raises:
            PlanError: the plan belongs to another model.
            StudyError: the study was loaded without a model.
            OptionError: ``on_layer`` cannot be called with a model and a name; ``serve`` without a directory.
            OutOfMemoryError: memory is used up.
        """
        check_plan(plan)
        check_steps(self._record, plan)
        check_on_layer(on_layer)
        session = session_of(self)
        phases = session.phases()
        # With a hook no layer is kept.
        kept = kept_text(session.run_dir if on_layer is None else None)
        with out_of_memory_told(lambda: f"phase {phases.name!r}", kept):
            result = self._within_budgets(
                plan,
                lambda planned: build_result(
                    session, planned, phases, grams=self.grams, on_layer=on_layer, sequential=sequential
                ),
            )
        result = _with_peak_told(self._with_damages(result, plan), plan)
        return result.with_notes(self.notes, {**self.seconds, **phases.seconds})

    def _within_budgets(self, plan: Plan, build: Callable[[Plan], Result]) -> Result:
        """What a plan builds; where that counts above a budget, what a plan for less of it builds.

        Costs of a plan follow from the rows that reach each layer in the original. Where a router then sends
        them elsewhere, or a group could not be slimmed after all, the built model costs something else.
        """
        result, budgets = build(plan), dict(plan.budgets)
        planned, notes = plan, list[Note]()
        for _ in range(_MAX_BUDGET_TRIES):
            counted = {metric: result.keep_ratio(metric) for metric in plan.budgets}
            over = [metric for metric, asked in plan.budgets.items() if counted[metric] > asked]
            if not over:
                break
            for metric in over:
                least = min(budgets[metric], planned.keep_ratio(metric))
                budgets[metric] = least * plan.budgets[metric] / counted[metric]
            told = ", ".join(f"{counted[metric]:.4f} of the {metric}" for metric in over)
            asked_text = ", ".join(f"{plan.budgets[metric]:.4f}" for metric in over)
            # Numbers that "auto" had to lower are found anew.
            multiple_of: MultipleOf = plan.multiple_of if plan.relaxed is None else "auto"
            found = plan_again(self._record, plan, result.plan, budgets, multiple_of)
            if found is None:
                text = (
                    f"the built model has {told}, above the {asked_text} that were asked for, and the layers "
                    "of the plan cannot make up for it; plan a smaller budget"
                )
                notes.append(Note(where="apply", text=text, is_warning=True))
                break
            text = (
                f"the model that was built first had {told}, above the {asked_text} that were asked for (a "
                "router sent other rows to its experts, or a group could not be slimmed); it was planned and "
                "built again for less"
            )
            notes.append(Note(where="apply", text=text))
            planned = found
            result = build(replace(planned, budgets=plan.budgets, asked=plan.asked, fixed=plan.fixed))
        return replace(result, notes=(*result.notes, *notes)) if notes else result

    def _with_damages(self, result: Result, plan: Plan) -> Result:
        """The result with what this study knows of its layers, groups and blocks, for its report.

        Args:
            result: as built.
            plan: that was to be built.

        Returns:
            The result, with predicted damages, and with what rounding changed.
        """
        layers = tuple(
            layer
            if layer.setting is None
            else replace(layer, damage=damage_at(self.curves, layer.name, layer.setting))
            for layer in result.layers
        )
        groups = {
            name: group_damage_at(self.group_curves, name, channels_kept)
            for name, channels_kept in result.plan.groups.items()
        }
        blocks = {name: block_damage_at(self.block_damages, name) for name in result.plan.dropped}
        is_as_planned = are_same_steps(plan.steps, result.plan.steps)
        return replace(
            result,
            layers=layers,
            group_damages={name: damage for name, damage in groups.items() if damage is not None},
            block_damages={name: damage for name, damage in blocks.items() if damage is not None},
            _curves=self.curves,
            _group_curves=self.group_curves,
            _unrounded=Unrounded(partial(plan_unrounded, self._record, plan)) if is_as_planned else None,
            _made=self._made(),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the study to a directory, inputs included, so that it can be planned and applied elsewhere.

        Args:
            path: the directory; files of an earlier study in it are replaced.

        Raises:
            FileError: it cannot be written.
        """
        write_study(Store(path), self._record, self.grams, self._session)

    @classmethod
    @outside_inference_mode
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        batches: Iterable[object] | None = None,
        inputs: Inputs = None,
        outputs: OutputChoice = None,
        loss: OwnLossFn | None = None,
        run_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
        callback: Callable[[Event], object] | None = None,
        log_dir: str | os.PathLike[str] | None = None,
        memory: MemoryOption = None,
    ) -> "Study":
        """Reads a study that ``save`` or ``run_dir=`` left.

        Args:
            path: the directory.
            model: the same model, same weights; needed to apply plans, not to make them.
            batches: the same data; None takes the inputs that were saved.
            inputs: as in ``slimrank.study``, for ``batches``.
            outputs: as in ``slimrank.study``; needed again where it was a function.
            loss: as in ``slimrank.study``; needed again where there was one.
            run_dir: where ``apply`` keeps fitted layers, so that a killed one goes on; None for nowhere.
            progress: show bars in later work.
            callback: as in ``slimrank.study``, for later work.
            log_dir: as in ``slimrank.study``, for later work.
            memory: as in ``slimrank.study``, for ``apply``.

        Returns:
            The study.

        Raises:
            FileError: a file is missing, truncated or altered.
            StudyError: the model or the data are not those of the study.
            OptionError: ``memory`` is no number of bytes, or too little.
        """
        store = Store(path)
        record, grams = read_study(store), saved_grams(store)
        study = cls(
            structure=record.structure,
            before=record.before,
            has_bias=record.has_bias,
            curves=Curves(record.curves),
            methods=record.methods,
            grams=grams,
            unit=record.unit,
            notes=record.notes,
            seconds=record.seconds,
            fingerprint=record.fingerprint,
            previous=record.previous,
            group_curves=GroupCurves(record.group_curves),
            block_damages=record.block_damages,
            _options=record.options,
        )
        if model is None:
            return study
        outputs = saved_outputs(record, outputs)
        check_saved_loss(record, loss)
        given = receive(model).model
        model, _ = as_planned(given, record.untouched)
        check_structure(record.untouched, structure_of(describe_layers(model)))
        if record.options is None:
            raise FileError(
                f"{store.root} keeps no options, since the study was saved without its model; study again"
            )
        if batches is None:
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            source = saved_source(store, record, outputs, loss, device)
        else:
            source = DataSource(batches=batches, inputs=inputs, outputs=outputs, loss=loss)
        session = open_session(model, source, record.options, Phases(shown=False), memory=memory, fold=False)
        session = read_as_stored(session, source, record.fingerprint)
        fingerprint = fingerprint_of(session, given, record.previous)
        check_fingerprint(fingerprint, record, store)
        listeners = listeners_of(callback, log_dir)
        if run_dir is not None:
            check_folder(run_dir, "run_dir")
            listeners = (*listeners, EventFile(Path(run_dir) / EVENTS_FILE))
        session = replace(
            session,
            progress=progress,
            listeners=listeners,
            run_dir=None if run_dir is None else Path(run_dir),
            fingerprint=fingerprint,
        )
        device = next(session.original.parameters()).device
        moved = {name: gram.to(device) for name, gram in grams.items()}
        return replace(study, _session=session, grams=moved)


@shown_live_in_run_dir
def study(
    model: nn.Module | Result,
    batches: Iterable[object],
    *,
    inputs: Inputs = None,
    outputs: OutputChoice = None,
    likelihood: LikelihoodChoice = "auto",
    weights: Weights = None,
    loss: OwnLossFn | None = None,
    methods: Sequence[Method] = METHODS,
    skip: Skip = (),
    fisher: bool = True,
    draws: int = 4,
    holdout: float = 0.2,
    data_free: bool = False,
    channel_order: ChannelOrder = "obs",
    effort: Effort = "normal",
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    callback: Callable[[Event], object] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    serve: bool = False,
    memory: MemoryOption = None,
    seed: int = 0,
    previous: Plan | None = None,
) -> Study:
    """Measures what every layer of a model can lose. No labels, no training; the model is not changed.

    Args:
        model: any module, wrapped or not (docs/howto/bring.md); or a result, to compress its model (trained
            further or not) once more.
        batches: a re-iterable (list, DataLoader) of unlabelled inputs: a tensor (first argument), a tuple
            (positional) or a dict (keywords) each. A few hundred samples are a good number.
        inputs: turns what the loader yields into inputs, e.g. ``lambda b: b[0]`` for (input, label); None for
            as it is.
        outputs: which outputs matter: a key or an index of what the model returns, a list of them, or a
            function of it; None for ``logits`` where there are any, else all floating tensors.
        likelihood: how outputs are read: "categorical" (scores of classes, or their probabilities),
            "bernoulli" (yes or no), "gaussian" (numbers), or "auto", which tells it from their values and
            says in the notes what it took. Of several outputs: a dict from their paths, or a list.
        weights: of the divergence of each output, positive: a dict from their paths, or a list; None for 1.
        loss: ``loss(outputs, original_outputs)`` of (N,) losses, differentiable and least where both are the
            same: damage and divergence are told by it, errors weighed by its curvature. What it is given is
            what ``outputs`` picks. None for the divergence that ``likelihood`` tells.
        methods: methods to measure; ``(*sr.METHODS, *sr.MORE_METHODS)`` are all that there are.
        skip: layers to leave alone: globs on their names, or modules of the model, with all that is in them.
        fisher: weigh errors by label-free output gradients; False uses inputs only.
        draws: label-free draws per sample, of up to a hundred samples; of more, fewer for each.
        holdout: share of samples kept out of fits, for guards and measured divergences.
        data_free: use weights only (plain SVD); batches then only tell shapes and measure the result.
        channel_order: by what channels of a group go first: "obs" (what their loss costs once the others make
            up for it), or two baselines: "magnitude" (AIMET's: norm of the weights that read them), "random".
        effort: "fast" measures fewer divergences and drops no blocks, "thorough" measures more of everything;
            docs/howto/memory.md has the price of each in time and accuracy.
        run_dir: directory for what is measured, so that a killed study goes on; None for nowhere.
        progress: show bars on stderr; where that is no terminal, log a line per phase and minute
            (``logging.getLogger("slimrank.progress")``).
        callback: called with every event of this call and of later work on the study, a dict;
            docs/howto/progress.md has its keys.
        log_dir: directory to which figures are written for TensorBoard; None for nowhere.
        serve: show the run in the browser (``slimrank.serve``) while this call lasts; needs ``run_dir``. The
            address is written to stderr, once.
        memory: bytes that it may take beside the model, about, or a text such as "2GB"; None for 2.5 GB, or
            1 GB beside what cannot be cut. Less takes longer; no result depends on it.
        seed: of everything drawn.
        previous: the plan that made the model, where it was compressed before (a result brings its own):
            plans then hold both steps, and what is saved rebuilds from the original model.

    Returns:
        The study.

    Raises:
        BatchesError: no batches, batches that change or that the model refuses.
        DeviceError: model and batches on different devices.
        NonFiniteError: nan or inf in data, weights, outputs or gradients.
        ModelError: nothing to compress, or a model that cannot be copied.
        OutputError: outputs that cannot be compared.
        GradientError: outputs without gradient path.
        UnknownNameError: an unknown method, or a skip pattern that matches nothing.
        OptionError: another option out of range, or ``serve`` without ``run_dir``.
        StudyError: ``run_dir`` holds a study of something else.
        PlanError: ``previous`` did not make this model.
        OutOfMemoryError: memory is used up; the message says where, and what is kept.
    """
    return study_and_check(
        model,
        batches,
        None,
        inputs=inputs,
        outputs=outputs,
        likelihood=likelihood,
        weights=weights,
        loss=loss,
        methods=methods,
        skip=skip,
        fisher=fisher,
        draws=draws,
        holdout=holdout,
        data_free=data_free,
        channel_order=channel_order,
        effort=effort,
        run_dir=run_dir,
        progress=progress,
        callback=callback,
        log_dir=log_dir,
        memory=memory,
        seed=seed,
        previous=previous,
    )


class Asked(TypedDict):
    """What is asked of a study, and how its data are read, as ``study`` has it."""

    inputs: Inputs
    outputs: OutputChoice
    likelihood: LikelihoodChoice
    weights: Weights
    loss: OwnLossFn | None
    methods: Sequence[Method]
    skip: Skip
    fisher: bool
    draws: int
    holdout: float
    data_free: bool
    channel_order: ChannelOrder
    effort: Effort
    seed: int


def study_and_check(
    model: nn.Module | Result,
    batches: Iterable[object],
    check: Callable[[Study], object] | None,
    *,
    run_dir: str | os.PathLike[str] | None,
    progress: bool,
    callback: Callable[[Event], object] | None = None,
    log_dir: str | os.PathLike[str] | None = None,
    memory: MemoryOption,
    previous: Plan | None,
    **asked: Unpack[Asked],
) -> Study:
    """``study`` for a call that goes on with it, and knows before it what it will ask of it.

    Args:
        model: as in ``study``, and so are all others.
        batches: see there.
        check: called before anything is measured, with a study of every rank, width and block that may come
            out, none of which loses anything: what cannot be planned from it cannot be planned at all. What
            it raises ends the study. None for nothing.
        run_dir: see there.
        progress: see there.
        callback: see there.
        log_dir: see there.
        memory: see there.
        previous: see there.
        asked: see there.

    Returns:
        The study.

    Raises:
        SlimrankError: as in ``study``, and what ``check`` raises.
    """
    model, previous = resolve_model(model, previous)
    options = Options(
        methods=methods_in_order(asked["methods"]),
        skip=globs_of(asked["skip"], model, lambda: [spec.name for spec in describe_layers(model)]),
        likelihood=likelihood_of(asked["likelihood"]),
        fisher=asked["fisher"],
        draws=asked["draws"],
        holdout=asked["holdout"],
        data_free=asked["data_free"],
        channel_order=asked["channel_order"],
        effort=asked["effort"],
        seed=asked["seed"],
        weights=weights_of(asked["weights"]),
    )
    source = DataSource(batches=batches, inputs=asked["inputs"], outputs=asked["outputs"], loss=asked["loss"])
    return study_with(
        model,
        source,
        options,
        run_dir=run_dir,
        progress=progress,
        listeners=listeners_of(callback, log_dir),
        memory=memory,
        previous=previous,
        check=check,
    )


@outside_inference_mode
def study_with(
    model: nn.Module,
    source: DataSource,
    options: Options,
    *,
    run_dir: str | os.PathLike[str] | None,
    progress: bool,
    listeners: tuple[Listener, ...] = (),
    memory: MemoryOption,
    previous: Plan | None,
    check: Callable[[Study], object] | None = None,
) -> Study:
    """``study`` with its options as one value: who studies again changes what must differ, and no more.

    Args:
        model: any module.
        source: the data.
        options: what shall be measured.
        run_dir: as in ``study``.
        progress: as in ``study``.
        listeners: each is called with every event.
        memory: as in ``study``.
        previous: as in ``study``.
        check: as in ``study_and_check``.

    Returns:
        The study.

    Raises:
        SlimrankError: as in ``study``.
    """
    check_options(options)
    if run_dir is not None:
        check_folder(run_dir, "run_dir")
    received = receive(model)
    model = received.model
    check_skip(options.skip, model)
    if previous is not None:
        check_plan(previous)
        check_previous(model, previous, has_bias=options.has_bias)
    phases = Phases(shown=progress, listeners=listeners)
    with out_of_memory_told(lambda: f"phase {phases.name!r}", kept_text(run_dir)):
        return _measured_study(received, source, options, phases, run_dir, listeners, memory, previous, check)


def _measured_study(
    received: Received,
    source: DataSource,
    options: Options,
    phases: Phases,
    run_dir: str | os.PathLike[str] | None,
    listeners: tuple[Listener, ...],
    memory: MemoryOption,
    previous: Plan | None,
    check: Callable[[Study], object] | None,
) -> Study:
    """The study, once options are checked."""
    model = received.model
    session = open_session(model, source, options, phases, memory=memory)
    before = session.captured.before
    if previous is not None:
        check_previous_cost(before, previous)
    store = None if run_dir is None else Store(run_dir)
    stored = None if store is None else fingerprint_in(store)
    session = read_as_stored(session, source, stored or {})
    fingerprint = fingerprint_of(session, model, previous)
    claimed = Claim()
    if store is not None:
        claimed = claim(store, fingerprint, session)
        for note in claimed.notes:
            phases.tell(str(note))
        journal = EventFile(store.root / EVENTS_FILE)
        phases.add_listener(journal)
        listeners = (*listeners, journal)
    session = replace(
        session,
        progress=phases.is_shown,
        listeners=listeners,
        run_dir=None if store is None else store.root,
        fingerprint=fingerprint,
    )
    run = Run(phases=phases, store=store, is_read_only=claimed.is_read_only)

    def check_possible(known: Known) -> None:
        if check is not None:
            check(_possible_study(known, session, previous))

    measured = measure(session, run, _damage_at, None if check is None else check_possible)
    done = Study(
        structure=structure_of(measured.layers, measured.channels),
        before=before,
        has_bias=options.has_bias,
        curves=Curves(measured.curves),
        group_curves=GroupCurves(measured.group_curves),
        block_damages=measured.block_damages,
        methods=options.methods,
        grams=measured.grams,
        unit=session.damage_unit,
        notes=(*received.notes, *session.notes, *measured.notes, *previous_notes(previous), *claimed.notes),
        seconds=phases.seconds,
        fingerprint=fingerprint,
        previous=previous,
        _session=session,
    )
    if store is not None and not claimed.is_read_only:
        done.save(store.root)
    return done


def _possible_study(known: Known, session: Session, previous: Plan | None) -> Study:
    """A study of what may be measured, for plans alone."""
    return Study(
        structure=known.structure,
        before=known.before,
        has_bias=known.has_bias,
        curves=Curves(known.curves),
        group_curves=GroupCurves(known.group_curves),
        block_damages=known.block_damages,
        methods=known.methods,
        grams={},
        unit=session.damage_unit,
        notes=(),
        seconds={},
        fingerprint=session.fingerprint,
        previous=previous,
        _options=session.options,
    )


def _damage_at(source: PlanSource, keep: float) -> float:
    """Predicted damage of the best plan at a keep ratio of the MACs; inf where none reaches it."""
    try:
        plan = select_plan(source, budgets={"macs": keep})
    except (BudgetError, NonFiniteError):
        # A curve that is not finite is refused by name where a plan is asked for.
        return inf
    return inf if plan.damage is None else plan.damage


def planned_without_new_bias(study: Study) -> Study:
    """What ``Study.plan(new_bias=False)`` plans on: the study, counting no bias where a layer has none.

    Raises:
        OptionError: an earlier step made new biases.
    """
    record = without_new_biases(study._record)
    return replace(study, has_bias=record.has_bias, curves=Curves(record.curves))


def with_overall(study: Study, overall: Overall) -> Study:
    """A study whose later work tells how far the call is that it is part of."""
    return replace(study, _session=replace(session_of(study), overall=overall))


def _with_peak_told(result: Result, plan: Plan) -> Result:
    """The result, with a warning where its peak of activations is above what the plan was chosen for."""
    peak, asked = result.activation_bytes, plan.activations
    if peak is None or asked is None or asked.holds(peak.after):
        return result
    text = (
        f"the built model has {peak.after:,} bytes of activations at its peak, above the "
        f"{asked.asked * asked.before:,.0f} of {asked.text}: a group could not be slimmed, or a router sent "
        "other rows to its experts; plan a smaller budget"
    )
    return replace(result, notes=(*result.notes, Note(where="apply", text=text, is_warning=True)))


def skipped_globs(study: Study, skip: Skip) -> tuple[str, ...]:
    """What a plan of a study leaves alone, as globs; modules are those of the model that was studied.

    Raises:
        OptionError: neither text nor module, or a module that is not in the model or holds no layer.
        StudyError: a module, and the study was loaded without a model.
    """
    callers = None if study._session is None else study._session.callers.model
    return globs_of(skip, callers, lambda: study.structure.layers)


def _check_score_fn(score_fn: object, *, measure: bool) -> None:
    if score_fn is None:
        return
    if not callable(score_fn):
        raise OptionError(
            f"pareto: score_fn is a {type(score_fn).__name__}; give a function fn(model) -> float"
        )
    if not measure:
        raise OptionError(
            "pareto: score_fn= is given with measure=False, which builds no model to score; leave one out"
        )


def check_plan(plan: object) -> None:
    """Refuses what is no plan.

    Raises:
        OptionError: no ``Plan``.
    """
    if not isinstance(plan, Plan):
        raise OptionError(
            f"plan is a {type(plan).__name__}; give a Plan, e.g. study.plan(macs=0.5) or Plan.load(path)"
        )


def session_of(study: object) -> Session:
    """What applying and evaluating need.

    Raises:
        OptionError: no study.
        StudyError: a study that was loaded without a model.
    """
    if not isinstance(study, Study):
        raise OptionError(
            f"study is a {type(study).__name__}; give a Study, e.g. slimrank.study(model, batches)"
        )
    if study._session is None:
        raise StudyError(
            "this study was loaded without a model; pass Study.load(dir, model=build()) to build from it"
        )
    return study._session


def resolve_model(model: nn.Module | Result, previous: Plan | None) -> tuple[nn.Module, Plan | None]:
    """The model, and the plan that made it, of what a caller gave as the model.

    Raises:
        OptionError: a result and a plan.
    """
    if not isinstance(model, Result):
        return model, previous
    if previous is not None:
        raise OptionError("previous= is given beside a result, which brings its own plan; leave it out")
    return model.model, model.plan
