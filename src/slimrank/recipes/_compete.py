# SPDX-License-Identifier: Apache-2.0
"""Plans that compete by what they build."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from math import inf, isfinite
from typing import Literal

from slimrank._errors import BudgetError
from slimrank._result import Result
from slimrank._study import Study, session_of
from slimrank._verify import ROUGH_SAMPLES, rough_divergence, rough_feed
from slimrank.calibrate import Feed
from slimrank.fitting import OnLayer
from slimrank.plan import Plan, are_same_steps, chosen_on
from slimrank.recipes._builds import Builds
from slimrank.records import PRUNING, Curves, GroupCurves, Method, Note, replaces_groups
from slimrank.report import agreement_text

# Damages are scaled by at most this factor either way: more would let the divergence of a single plan that
# went wrong decide everything.
_MAX_SCALE = 8.0


class Rivals:
    """Plans that compete by the held-out divergence of what they build.

    Args:
        measured: the study.
        plan_of: makes a plan of a study under the caller's budgets.
        on_layer: as in ``Study.apply``.
        max_damage: times the predicted damage of the first plan above which another one is not built.
        builds: tells how far the call is; of the same study.
        competes: whether ``build_others`` will be called after the first plan.
    """

    def __init__(
        self,
        measured: Study,
        plan_of: Callable[[Study, Literal["optimal", "uniform"], Sequence[Method] | None], Plan],
        on_layer: OnLayer | None,
        max_damage: float,
        builds: Builds,
        *,
        competes: bool,
    ) -> None:
        self._measured = measured
        self._plan_of = plan_of
        self._on_layer = on_layer
        self._max_damage = max_damage
        self._plans: dict[str, Plan] = {}
        self._divergences: dict[str, float] = {}
        # Plans whose model is above a budget all the same: these win only where all are.
        self._over: set[str] = set()
        # In words, after the divergence.
        self._agreements: dict[str, str] = {}
        self._same_as: dict[str, str] = {}
        # Predicted damage over that of the first plan, of plans that were not built.
        self._not_built: dict[str, float] = {}
        # About the divergence of plans whose scale is needed; less exact than that of a plan that is built.
        self._rough: dict[str, tuple[Plan, float]] = {}
        # Whether it was built as planned, with a divergence that is a number.
        self._is_first_sound = False
        self._best: tuple[tuple[bool, float], str, Result] | None = None
        self._notes: list[Note] = []
        self._seconds = dict(measured.seconds)
        self._builds = builds
        # Plans that are still to be tried, this one included.
        self._n_left = 1
        if competes:
            self._n_left += self._count_others(has_blocks=bool(measured.block_damages))

    def build(self, label: str, plan: Plan) -> None:
        """Builds a plan, unless one that does the same was built; the best result so far is kept."""
        for built_label, built_plan in self._plans.items():
            if are_same_steps(plan.steps, built_plan.steps):
                self._same_as[label] = built_label
                return
        self._builds.begin(plan, self._n_left)
        result = self._builds.study.apply(plan, on_layer=self._on_layer)
        value = inf if result.divergence is None else result.divergence
        self._agreements[label] = f", {agreement_text(result.agreement)}" if result.agreement else ""
        self._count_seconds(result.seconds)
        # Where a group could not be slimmed after all, the result is above the budget: that must not win.
        is_over = any(result.keep_ratio(metric) > ratio for metric, ratio in plan.budgets.items())
        is_over |= plan.latency is not None and result.plan.latency is None
        peak, wanted = result.activation_bytes, plan.activations
        is_over |= peak is not None and wanted is not None and not wanted.holds(peak.after)
        if is_over:
            self._over.add(label)
        if not self._plans:
            self._is_first_sound = isfinite(value) and not is_over
        self._plans[label], self._divergences[label] = plan, value
        if self._best is None or (is_over, value) < self._best[0]:
            self._best = ((is_over, value), label, result)

    def build_others(self) -> None:
        """Builds the uniform plan, and optimal ones: all blocks kept, single methods, pairs, recalibrated.

        Those that are predicted to be worse than the first plan are left out. The two that the recalibrated
        one is made from are measured roughly.
        """
        methods = self._methods
        pairs = tuple(method for method in methods if not replaces_groups(method))
        is_joint = 0 < len(pairs) < len(methods)
        has_blocks = any(plan.dropped for plan in self._plans.values())
        self._n_left = self._count_others(has_blocks=has_blocks)
        self._try("uniform", "uniform", None)
        if has_blocks:
            self._try("optimal, all blocks kept", "optimal", None, replace(self._measured, block_damages=()))
        if len(methods) < 2:
            return
        for method in methods:
            is_needed = is_joint and (method == PRUNING or pairs == (method,))
            self._try(f"optimal, {method} only", "optimal", (method,), is_needed=is_needed)
        if not is_joint:
            return
        factors = " and ".join(pairs) if len(pairs) > 1 else f"{pairs[0]} only"
        if len(pairs) > 1:
            self._try(f"optimal, {factors}", "optimal", pairs, is_needed=True)
        self._try_recalibrated(f"optimal, {factors}", f"optimal, {PRUNING} only")

    @property
    def _methods(self) -> tuple[Method, ...]:
        """Methods of which something was measured."""
        measured = {curve.method for curve in self._measured.curves}
        if self._measured.group_curves or self._measured.block_damages:
            measured.add(PRUNING)
        return tuple(method for method in self._measured.methods if method in measured)

    def _count_others(self, *, has_blocks: bool) -> int:
        """Plans beside the first one: uniform, all blocks kept, single methods, pairs, recalibrated."""
        n_methods = len(self._methods)
        n_pairs = sum(1 for method in self._methods if not replaces_groups(method))
        is_joint = 0 < n_pairs < n_methods
        return 1 + has_blocks + (n_methods if n_methods > 1 else 0) + is_joint * (1 + (n_pairs > 1))

    def _try(
        self,
        label: str,
        select: Literal["optimal", "uniform"],
        only: Sequence[Method] | None,
        measured: Study | None = None,
        *,
        is_needed: bool = False,
    ) -> None:
        """Makes a plan and builds it, unless that is in vain; a note says why it was not built."""
        self._attempt(label, select, only, measured, is_needed=is_needed)
        self._n_left -= 1

    def _attempt(
        self,
        label: str,
        select: Literal["optimal", "uniform"],
        only: Sequence[Method] | None,
        measured: Study | None,
        *,
        is_needed: bool,
    ) -> None:
        try:
            plan = self._plan_of(measured or self._measured, select, only)
        except BudgetError as error:
            text = f"{label}: out of reach ({str(error).split(';')[0]})"
            self._notes.append(Note(where="compete", text=text))
            return
        times = self._times_first(plan)
        if is_needed and self._can_be_rough:
            # Also where it is built: its scale is compared with another rough one.
            value = self._rough_divergence(plan)
            self._rough[label] = plan, value
            is_needed = value < self._lowest
        if times > self._max_damage and not is_needed:
            self._not_built[label] = times
            return
        self.build(label, plan)

    @property
    def _lowest(self) -> float:
        """The lowest divergence so far."""
        return min(self._divergences.values(), default=inf)

    @property
    def _can_be_rough(self) -> bool:
        """Whether fits to fewer samples tell how good a plan is, in less time."""
        session = session_of(self._measured)
        is_less = len(session.feed.fit) > ROUGH_SAMPLES
        return is_less and self._on_layer is None and not session.options.data_free

    @cached_property
    def _rough_feed(self) -> Feed:
        """The samples of every rough divergence: one pass of the batches reads them."""
        return rough_feed(session_of(self._measured))

    def _rough_divergence(self, plan: Plan) -> float:
        session = session_of(self._builds.study)
        phases = session.phases()
        self._builds.begin(plan, self._n_left + 1)
        grams, feed = self._measured.grams, self._rough_feed
        value = rough_divergence(session, plan, phases, grams=grams, feed=feed)
        self._count_seconds(phases.seconds)
        return value

    def _count_seconds(self, seconds: Mapping[str, float]) -> None:
        for phase in ("apply", "verify"):
            self._seconds[phase] = self._seconds.get(phase, 0.0) + seconds.get(phase, 0.0)

    def _times_first(self, plan: Plan) -> float:
        """Predicted damage of a plan over that of the first; 0 where the first is no measure for others."""
        if not self._plans or not self._is_first_sound:
            return 0.0
        damage = next(iter(self._plans.values())).damage
        return plan.damage / damage if plan.damage is not None and damage else 0.0

    def _try_recalibrated(self, pairs: str, pruning: str) -> None:
        """The joint plan once more, damages scaled by what the plans of either kind really did.

        Predicted damages are those of one change alone. How much of it fits made one after the other undo
        differs between ranks and channels, and from network to network. Those of blocks were measured after
        fits.
        """
        pair_scale, group_scale = self._scale(pairs), self._scale(pruning)
        if pair_scale is None or group_scale is None:
            label = pairs if pair_scale is None else pruning
            text = (
                f"optimal, recalibrated: not planned, since no divergence of the {label} plan tells its scale"
            )
            self._notes.append(Note(where="compete", text=text))
            return
        recalibrated = replace(
            self._measured,
            curves=Curves(
                replace(curve, damage=curve.damage * pair_scale) for curve in self._measured.curves
            ),
            group_curves=GroupCurves(
                replace(curve, damage=curve.damage * group_scale) for curve in self._measured.group_curves
            ),
        )
        chosen = self._plan_of(recalibrated, "optimal", None)
        # The choice is recalibrated; the damages that the plan shows are those of the study.
        plan = replace(chosen_on(self._measured, chosen), gap=None)
        self.build("optimal, recalibrated", plan)

    def _scale(self, label: str) -> float | None:
        """Measured divergence over predicted damage of a plan; None where nothing was measured."""
        built = self._same_as.get(label, label)
        plan, value = self._rough.get(label) or (self._plans.get(built), self._divergences.get(built))
        if plan is None or value is None or not plan.damage or not 0 < value < inf:
            return None
        return min(max(value / plan.damage, 1 / _MAX_SCALE), _MAX_SCALE)

    def _rough_text(self, label: str) -> str:
        if label not in self._rough:
            return ""
        value = self._rough[label][1]
        return f"; fitted to a part of the samples, its divergence is {value:.4g} {self._measured.unit}"

    def best(self) -> Result:
        """The result with the lowest divergence; its notes list every plan."""
        if self._best is None:
            raise BudgetError("there is no plan to build")
        (is_over, _), winner, result = self._best
        built = [
            Note(
                where="compete",
                text=f"{label} plan: held-out divergence {self._divergences[label]:.4g} {result.unit}"
                + self._agreements[label]
                + (" (returned)" if label == winner and len(self._plans) + len(self._same_as) > 1 else "")
                + (
                    "; excluded, since its model is above the budget"
                    if label in self._over and not is_over
                    else ""
                ),
            )
            for label in self._plans
        ]
        built += [
            Note(where="compete", text=f"{label} plan: the same as the {built_label} plan")
            for label, built_label in self._same_as.items()
        ]
        first = next(iter(self._plans))
        built += [
            Note(
                where="compete",
                text=f"{label} plan: not built, its predicted damage is {times:.3g} times that of the "
                f"{first} plan" + self._rough_text(label),
            )
            for label, times in self._not_built.items()
        ]
        if is_over:
            text = "no plan could be built as it stands (see the notes), so the result is above the budget"
            self._notes.append(Note(where="compete", text=text))
        return result.with_notes([*self._notes, *built], self._seconds)
