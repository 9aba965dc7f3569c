# SPDX-License-Identifier: Apache-2.0
"""Plans of one study over their cost."""

import os
from dataclasses import dataclass, fields
from typing import cast

from slimrank._errors import BudgetError, OptionError, PlanError
from slimrank.files import Json
from slimrank.pareto._file import ParetoFields, read_pareto, write_pareto
from slimrank.pareto._knee import knee_index
from slimrank.pareto._point import ParetoPoint
from slimrank.plan import Structure, check_structure
from slimrank.records import Budgeted
from slimrank.report import finite_or_none, format_damage, notebook_html, render_curve, render_table

# Columns of a summary that is not told how wide it may be.
_WIDTH = 80
# A curve bends from so many points on.
_BEND_FROM = 3
_NO_BEND = "Fewer than three points have no bend: the knee is only an end of them."


@dataclass(frozen=True, kw_only=True, repr=False)
class Pareto:
    """Plans of one study from near the smallest model that it reaches to near the whole one.

    Made by ``Study.pareto`` or ``Pareto.load``.

    Attributes:
        metric: what costs and budgets are of: "macs", "params", "bytes" or "latency".
        points: one for each different plan, by ascending cost.
        unit: of what is predicted.
        measured_unit: of what was measured: that of the divergence, or "score"; None where nothing was.
        baseline: score of the original; None where no score function was given.

    Example:
        >>> from slimrank.pareto import ParetoPoint
        >>> from slimrank.plan import Plan
        >>> from slimrank.records import Cost
        >>> plan = Plan(steps=(), before=Cost(macs=100, params=10, bytes=40), has_bias=False)
        >>> curve = Pareto(
        ...     metric="macs", unit="nats per sample", measured_unit="nats per sample",
        ...     points=tuple(
        ...         ParetoPoint(budget=cost, cost=cost, predicted=None, measured=measured, plan=plan)
        ...         for cost, measured in ((0.2, 1.5), (0.4, 0.07), (0.6, 0.05), (0.8, 0.03))
        ...     ),
        ... )
        >>> curve.knee().cost
        0.4
    """

    metric: Budgeted
    points: tuple[ParetoPoint, ...]
    unit: str
    measured_unit: str | None = None
    baseline: float | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Pareto":
        """Reads a curve that ``save`` wrote.

        Args:
            path: of the JSON file.

        Returns:
            The curve.

        Raises:
            FileError: the file is missing or cannot be read.
            PlanError: it is no such file, is cut short, holds unknown keys, or is of another format.
            RankError: a rank that a layer does not have.
        """
        return cls(**read_pareto(path))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the curve, its plans included, as JSON, whole or not at all.

        Args:
            path: of the file; an existing one is replaced.

        Raises:
            FileError: the file cannot be written.
        """
        # mypy does not follow a dictionary that a comprehension builds into the TypedDict.
        write_pareto(
            path, cast(ParetoFields, {known.name: getattr(self, known.name) for known in fields(self)})
        )

    def knee(self) -> ParetoPoint:
        """The point after which damage rises fastest: below its cost each saving costs much more than above.

        Damage is what was measured, of a score what is lost of the original's; else what is predicted. It is
        made to fall with the cost, which evens out noise, and taken as ``log(1 + damage / median)``, the loss
        of a score as it stands. The knee is the point farthest below the straight line between both ends.

        Returns:
            One of ``points``; the dearest where damage rises evenly, the cheapest where nothing is lost.
            Fewer than three points have no bend, so one of their ends comes out by the same rule;
            ``summary()`` says so.

        Raises:
            BudgetError: there are no points.
        """
        if not self.points:
            raise BudgetError(
                "pareto: there are no points, since no plan of the study keeps any of the budgets; "
                "study.summary() tells what can be compressed"
            )
        lost = [self._lost(point) for point in self.points]
        is_log = self.baseline is None
        # A curve of both kinds of numbers would bend where one follows the other.
        if any(loss is None for loss in lost):
            lost = [point.predicted for point in self.points]
            is_log = True
        costs, damages = [point.cost for point in self.points], [loss or 0.0 for loss in lost]
        return self.points[knee_index(costs, damages, is_log=is_log)]

    def _lost(self, point: ParetoPoint) -> float | None:
        """What the model of a point was measured to lose; None where nothing was measured."""
        if point.measured is None or self.baseline is None:
            return point.measured
        return self.baseline - point.measured

    def summary(self, *, width: int = _WIDTH) -> str:
        """The points as a table, and as a curve drawn with plain characters.

        Args:
            width: columns of the curve; the table takes what it needs (about 70).

        Returns:
            Lines of ASCII, the last one ended.
        """
        if not self.points:
            return f"{self._heading()}\n"
        few = f"{_NO_BEND}\n" if len(self.points) < _BEND_FROM else ""
        return f"{self._heading()}\n{render_table(*self._table())}\n{few}\n{self._drawn(width)}"

    def _repr_html_(self) -> str:
        return notebook_html("Pareto", [self._heading()], [self._table()] if self.points else [])

    def _heading(self) -> str:
        if not self.points:
            return f"No plan keeps any budget of {self.metric}."
        heading = (
            f"{len(self.points)} plans; {self.metric} as keep ratios of the model; predicted in {self.unit}"
        )
        if self.baseline is not None:
            return f"{heading}; score of the original {self.baseline:.6g}"
        if self.measured_unit is not None and self.measured_unit != self.unit:
            return f"{heading}, measured in {self.measured_unit}"
        return heading

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Columns and rows."""
        knee, is_score = self.knee(), self.baseline is not None
        rows: list[tuple[str, ...]] = [
            (
                f"{point.budget:.4f}",
                f"{point.cost:.4f}",
                format_damage(point.predicted),
                f"{point.measured:.6g}"
                if is_score and point.measured is not None
                else format_damage(point.measured),
                str(len(point.plan.settings)),
                str(len(point.plan.groups)),
                str(len(point.plan.dropped)),
                "<- knee" if point is knee else "",
            )
            for point in self.points
        ]
        measured = "score" if is_score else "measured"
        columns = (
            ">budget",
            f">{self.metric}",
            ">predicted",
            f">{measured}",
            ">pairs",
            ">slimmed",
            ">dropped",
            "",
        )
        return columns, rows

    def _drawn(self, width: int) -> str:
        measured = [(point.cost, point.measured) for point in self.points if point.measured is not None]
        predicted = [(point.cost, point.predicted) for point in self.points if point.predicted is not None]
        is_score = self.baseline is not None
        if is_score:
            series, what = {"*": measured}, "* score"
        elif measured and self.measured_unit == self.unit:
            series, what = {"o": predicted, "*": measured}, "* measured divergence, o predicted damage"
        elif measured:
            series, what = {"*": measured}, "* measured divergence"
        else:
            series, what = {"o": predicted}, "o predicted damage"
        return render_curve(
            series,
            title=f"{what}, over {self.metric}; | knee",
            mark=self.knee().cost,
            is_log=not is_score,
            width=width,
        )

    def __repr__(self) -> str:
        if not self.points:
            return f"Pareto({self.metric}: no points)"
        measured = sum(point.measured is not None for point in self.points)
        return (
            f"Pareto({self.metric}: {len(self.points)} points from {self.points[0].cost:.4f} to "
            f"{self.points[-1].cost:.4f}, {measured} measured, knee at {self.knee().cost:.4f})"
        )


def pareto_facts(curve: Pareto, structure: Structure | None = None) -> dict[str, Json]:
    """A curve as JSON, without its plans: what ``--json`` prints, and what a page may show.

    Args:
        curve: any.
        structure: of the model that its plans must be for; None for any.

    Returns:
        Its keys, in the order in which people read them; "knee" is an index of the points, and what is not
        finite is None.

    Raises:
        OptionError: something else than a curve.
        PlanError: its plans are for another model.
    """
    if not isinstance(curve, Pareto):
        raise OptionError(f"pareto is a {type(curve).__name__}; give what study.pareto() returned")
    if structure is not None:
        for point in curve.points:
            try:
                check_structure(point.plan, structure, step=-1)
            except PlanError as error:
                raise PlanError(
                    f"pareto: its plans are for another model ({error}); give a curve of this study, "
                    "study.pareto()"
                ) from error
    points: list[Json] = [
        {
            "budget": point.budget,
            "cost": point.cost,
            "predicted": finite_or_none(point.predicted),
            "measured": finite_or_none(point.measured),
            "layers": len(point.plan.settings),
            "groups": len(point.plan.groups),
            "blocks": len(point.plan.dropped),
        }
        for point in curve.points
    ]
    knee = curve.knee() if curve.points else None
    return {
        "metric": curve.metric,
        "unit": curve.unit,
        "measured_unit": curve.measured_unit,
        "baseline": curve.baseline,
        "knee": None if knee is None else curve.points.index(knee),
        "points": points,
    }
