# SPDX-License-Identifier: Apache-2.0
"""The whole way in one call."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from slimrank._errors import OptionError
from slimrank._live_view import shown_live_in_run_dir
from slimrank._progress import Event
from slimrank._result import Result
from slimrank._study import Study, planned_without_new_bias, study_and_check
from slimrank.calibrate import OwnLossFn
from slimrank.fitting import OnLayer, check_on_layer
from slimrank.forward import OutputChoice, outside_inference_mode
from slimrank.latency import check_conditions, check_kept
from slimrank.plan import (
    FixedSettings,
    LatencyTable,
    MultipleOf,
    Plan,
    check_fixed,
    check_latency,
    check_multiple_of,
    latency_ratio,
    milliseconds_of,
)
from slimrank.recipes._builds import Builds
from slimrank.recipes._compete import Rivals
from slimrank.recipes._measure_latency import measure_latency
from slimrank.recipes._meet_latency import within_latency
from slimrank.records import METHODS, ChannelOrder, Effort, LikelihoodChoice, Method, Metric, Weights
from slimrank.select import check_budgets, check_peak
from slimrank.survey import Inputs, MemoryOption, Skip

# In a run directory: the table of times that a latency was planned by.
LATENCIES_FILE = "latencies.json"
# Times the predicted damage of the optimal plan above which another one is not built. Of 40 plans above 1.1
# times it, of four networks at two budgets with two seeds, one was better on fresh samples, by 3 %: where the
# few held-out ones preferred such a plan, that was chance. More builds more plans in vain.
_MAX_DAMAGE: Mapping[Effort, float] = {"fast": 1.0, "normal": 1.1, "thorough": 1.5}

# Plans that are built and measured for a latency, at most: the first mostly holds, the second nearly always.
_ROUNDS = 3


@shown_live_in_run_dir
@outside_inference_mode
def compress(  # noqa: D417 - the others are named in one sentence each; a test checks that
    model: nn.Module | Result,
    batches: Iterable[object],
    *,
    macs: float | str | None = None,
    params: float | str | None = None,
    bytes: float | str | None = None,
    latency: float | str | None = None,
    activation_bytes: float | str | None = None,
    backend: str = "onnxruntime",
    threads: int = 1,
    batch: int = 1,
    precision: str = "float32",
    compete: bool = True,
    multiple_of: MultipleOf = "auto",
    on_layer: OnLayer | None = None,
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
    fixed: FixedSettings | None = None,
    relative_to: Literal["model", "original"] = "model",
    uniform_widths: bool = False,
    new_bias: bool = True,
) -> Result:
    """Study, plan and apply in one call; several plans compete by the held-out divergence of the built model.

    These arguments are explained in ``slimrank.study``: ``batches``, ``inputs``, ``outputs``, ``likelihood``,
    ``weights``, ``loss``, ``methods``, ``skip``, ``fisher``, ``draws``, ``holdout``, ``data_free``,
    ``channel_order``, ``effort``, ``run_dir``, ``progress``, ``callback``, ``log_dir``, ``serve``,
    ``memory``, ``seed`` and ``previous``. These are explained in ``Study.plan``: ``multiple_of``, ``fixed``,
    ``relative_to``, ``uniform_widths`` and ``new_bias``.

    Args:
        model: any module; or a result, to compress its model once more.
        macs: keep ratio of the MACs, in (0, 1], also as "50%"; or a whole number above 1, for so many MACs of
            one sample at most. At least one budget is needed, several hold together.
        params: keep ratio of the params, or so many at most.
        bytes: keep ratio of the bytes, or so many at most, also as "2MB" or "1.5MiB".
        latency: keep ratio of the time of the original in float32, or a time, such as "4.5ms": times are
            measured in the runtime (``slimrank.measure_latency``), and the result is measured and planned
            again until the budget holds (``slimrank.meet_latency``). With ``run_dir`` the table is kept
            there, as ``latencies.json``.
        activation_bytes: keep ratio of the peak of the activations of one sample, or so many bytes at most,
            also as "2MB"; as in ``Study.plan``.
        backend: the runtime, as in ``slimrank.measure_latency``; for a latency, as the next three.
        threads: of the runtime.
        batch: samples in the batch that is timed.
        precision: of the file that is timed.
        compete: also build the single-method, the factors-only and the uniform plan, unless their predicted
            damage is above that of the optimal one, and return the best; False, and ``effort="fast"``, build
            the optimal plan alone.
        on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer, in order, for every
            plan that competes.

    Returns:
        The best result; its notes list every plan that was tried.

    Raises:
        SlimrankError: as in ``slimrank.study``, ``Study.plan``, ``slimrank.measure_latency`` and
            ``slimrank.meet_latency``.
    """
    check_on_layer(on_layer)
    # Before the study, which takes long.
    timing = _Timing(latency=latency, backend=backend, threads=threads, batch=batch, precision=precision)
    ratios: dict[Metric, float | str | None] = {"macs": macs, "params": params, "bytes": bytes}
    budgets: dict[str, float | str | None] = {
        "macs": macs,
        "params": params,
        "bytes": bytes,
        "latency": latency,
        "activation_bytes": activation_bytes,
    }
    _check_budgets(ratios, budgets, relative_to)
    timing.check(relative_to, run_dir)
    check_multiple_of(multiple_of, None)
    check_fixed(fixed)

    def plan_of(
        source: Study,
        select: Literal["optimal", "uniform"],
        only: Sequence[Method] | None,
        budgets: Mapping[str, float | str | None],
        table: LatencyTable | None = None,
    ) -> Plan:
        return source.plan(
            **budgets,  # type: ignore[arg-type]
            latencies=table,
            multiple_of=multiple_of,
            select=select,
            methods=only,
            fixed=fixed,
            relative_to=relative_to,
            uniform_widths=uniform_widths,
            new_bias=new_bias,
        )

    def check(possible: Study) -> None:
        """Refuses, before anything is measured, what no plan can be made with."""
        known = {name: ratio for name, ratio in ratios.items() if ratio is not None}
        # Times and peaks are not known yet, and what several budgets allow together is found by trying.
        for name, ratio in (known or {"macs": 1.0}).items():
            plan_of(possible, "optimal", None, {name: ratio})

    measured = study_and_check(
        model,
        batches,
        check,
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

    def best_with(table: LatencyTable | None) -> Result:
        """The best result of several plans, with the times of a table."""

        def planned(
            source: Study, select: Literal["optimal", "uniform"], only: Sequence[Method] | None
        ) -> Plan:
            return plan_of(source, select, only, budgets, table)

        source = measured if new_bias else planned_without_new_bias(measured)
        competes = compete and effort != "fast"
        rivals = Rivals(
            source,
            planned,
            on_layer,
            max_damage=_MAX_DAMAGE[effort],
            builds=Builds(source, "models of compress"),
            competes=competes,
        )
        rivals.build("optimal", planned(source, "optimal", None))
        if competes:
            rivals.build_others()
        return rivals.best()

    if latency is None:
        return best_with(None)
    table = timing.table(measured, run_dir, progress=progress)
    asked = latency_ratio(latency, table.times)
    return within_latency(
        measured, best_with, table, asked, rounds=_ROUNDS, milliseconds=milliseconds_of(latency)
    )


def _check_budgets(
    ratios: Mapping[Metric, float | str | None], budgets: Mapping[str, float | str | None], relative_to: str
) -> None:
    """Refuses budgets that make no sense, whatever the model."""
    if (budgets["latency"] is None and budgets["activation_bytes"] is None) or any(
        ratio is not None for ratio in ratios.values()
    ):
        check_budgets(ratios, who="compress")
    if budgets["activation_bytes"] is not None:
        check_peak(budgets["activation_bytes"])
        if relative_to == "original":
            raise OptionError(
                "relative_to='original' is for costs of weights; leave it out beside activation_bytes="
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Timing:
    """How ``compress`` measures time."""

    latency: float | str | None
    backend: str
    threads: int
    batch: int
    precision: str

    def check(self, relative_to: str, run_dir: str | os.PathLike[str] | None) -> None:
        """Refuses what makes no sense, before anything is measured."""
        if self.latency is None:
            given = (self.backend, self.threads, self.batch, self.precision)
            if given != ("onnxruntime", 1, 1, "float32"):
                raise OptionError(
                    "backend=, threads=, batch= and precision= say how a latency is measured; add one, e.g. "
                    "latency=0.6"
                )
            return
        check_latency(self.latency)
        if relative_to == "original":
            raise OptionError("relative_to='original' is for counted costs; leave it out beside latency=")
        threads, batch = check_conditions(
            backend=self.backend, precision=self.precision, threads=self.threads, batch=self.batch
        )
        if run_dir is not None:
            table = Path(run_dir) / LATENCIES_FILE
            check_kept(table, backend=self.backend, precision=self.precision, threads=threads, batch=batch)

    def table(
        self, measured: Study, run_dir: str | os.PathLike[str] | None, *, progress: bool
    ) -> LatencyTable:
        """The times of the network, measured."""
        return measure_latency(
            measured,
            backend=self.backend,
            threads=self.threads,
            batch=self.batch,
            precision=self.precision,
            path=None if run_dir is None else Path(run_dir) / LATENCIES_FILE,
            progress=progress,
        )
