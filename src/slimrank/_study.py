# SPDX-License-Identifier: Apache-2.0
"""The study of a model: measured once, planned and applied any number of times."""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from slimrank._apply import OnLayer, check_on_layer
from slimrank._build import Session, build_from_weights, build_result
from slimrank._errors import BudgetError, FileError, OptionError, StudyError
from slimrank._result import Result
from slimrank._survey import (
    Opened,
    Options,
    check_options,
    gather_gradients,
    measure,
    open_data,
    read_curves,
    write_curves,
)
from slimrank.calibrate import LikelihoodChoice
from slimrank.deploy import (
    Json,
    Store,
    batch_from_files,
    batches_to_files,
    digest_tensors,
    load_artifact,
    make_directory,
    write_bytes,
)
from slimrank.graph import (
    Batch,
    OutputChoice,
    check_weights,
    describe_layers,
    map_tensors,
    outside_inference_mode,
)
from slimrank.methods import METHODS
from slimrank.plan import Plan, Step, Structure, check_structure, structure_of
from slimrank.records import Cost, Curve, LayerSpec, Method, Metric, Note
from slimrank.report import Phases, render_layers, render_study_html
from slimrank.select import select_plan

FORMAT = 1
_STUDY, _UNTOUCHED, _RUN = "study.json", "untouched_plan.json", "run.json"
Inputs = Callable[[object], object] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, repr=False)
class Study:
    """What was measured of a model: layers, costs, and damage by rank.

    Made by ``slimrank.study`` or ``Study.load``.

    Attributes:
        structure: every layer, in execution order.
        before: counted cost of the model, for one sample.
        has_bias: whether pairs carry a bias even where the layer has none (it absorbs the mean).
        curves: cost and damage by rank, per layer and form.
        methods: the methods that were measured.
        grams: second moments of output gradients, (C_out, C_out) by layer.
        unit: of damage.
        notes: what the user should know.
        seconds: wall time of each phase.
        fingerprint: ties the study to structure, weights, inputs and options.
    """

    structure: Structure
    before: Cost
    has_bias: bool
    curves: tuple[Curve, ...]
    methods: tuple[Method, ...]
    grams: Mapping[str, Tensor]
    unit: str
    notes: tuple[Note, ...]
    seconds: Mapping[str, float]
    fingerprint: Mapping[str, str]
    _session: Session | None = None

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Every layer, in execution order."""
        return tuple(self.structure.layers.values())

    def __repr__(self) -> str:
        count = sum(1 for spec in self.layers if spec.methods)
        return (
            f"Study({count} of {len(self.layers)} layers compressible, "
            f"{self.before.macs:,} MACs, {self.before.params:,} params)"
        )

    def summary(self) -> str:
        """A table of all layers: shape, MACs, params, methods that apply, or why none does."""
        notes = "\n".join(f"- {note}" for note in self.notes)
        return render_layers(self.layers, self.before) + (f"\n{notes}\n" if notes else "")

    def report(self, path: str | os.PathLike[str]) -> None:
        """Writes the layers as one self-contained HTML page.

        Args:
            path: of the file.

        Raises:
            FileError: it cannot be written.
        """
        html = render_study_html("Study", self.layers, self.before, self.notes)
        write_bytes(Path(path), html.encode())

    def plan(
        self,
        *,
        macs: float | None = None,
        params: float | None = None,
        bytes: float | None = None,
        select: Literal["optimal", "greedy", "uniform"] = "optimal",
        multiple_of: int | Mapping[str, int] = 1,
        methods: Sequence[Method] | None = None,
        skip: Sequence[str] = (),
    ) -> Plan:
        """Chooses a rank for every layer under a budget. Runs no model and writes no file.

        Args:
            macs: keep ratio of the MACs, in (0, 1]; None for no such budget. Several budgets hold together.
            params: keep ratio of the params.
            bytes: keep ratio of the bytes.
            select: "optimal" (exact, with a certified gap), "greedy" (AIMET's) or "uniform".
            multiple_of: ranks are multiples of this: a number, or layer-name glob -> number, first match
                wins.
            methods: fewer than were measured; None for all.
            skip: layer-name globs to leave alone.

        Returns:
            The plan; its counted cost is never above a budget.

        Raises:
            BudgetError: a budget that is no keep ratio, or out of reach; the message names the floor.
            UnknownNameError: a method, selector or pattern that does not exist.
        """
        budgets: dict[Metric, float] = {}
        if macs is not None:
            budgets["macs"] = macs
        if params is not None:
            budgets["params"] = params
        if bytes is not None:
            budgets["bytes"] = bytes
        if not budgets:
            raise BudgetError(
                "a plan needs a budget; give macs=, params= or bytes= as a keep ratio, e.g. macs=0.5"
            )
        return select_plan(
            self, budgets=budgets, select=select, multiple_of=multiple_of, methods=methods, skip=_globs(skip)
        )

    @outside_inference_mode
    def apply(self, plan: Plan, *, on_layer: OnLayer | None = None, sequential: bool = True) -> Result:
        """Builds the compressed model, layer by layer, and measures it.

        Args:
            plan: of this study, or of another study of the same architecture.
            on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer, in order.
            sequential: fit each layer to the inputs of the compressed model (guarded on held-out samples);
                False fits weights to the original's inputs, and only the bias to the new ones.

        Returns:
            The result.

        Raises:
            PlanError: the plan belongs to another model.
            StudyError: the study was loaded without a model.
            OptionError: ``on_layer`` cannot be called with a model and a name.
        """
        _check_plan(plan)
        check_structure(plan, self.structure)
        check_on_layer(on_layer)
        if self._session is None:
            raise StudyError(
                "this study was loaded without a model; pass Study.load(dir, model=build()) to apply a plan"
            )
        phases = Phases(shown=self._session.progress)
        result = build_result(self._session, plan, self.grams, self.curves, on_layer, sequential, phases)
        return result.with_notes(self.notes, {**self.seconds, **phases.seconds})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the study to a directory, inputs included, so that it can be planned and applied elsewhere.

        Args:
            path: the directory; files of an earlier study in it are replaced.

        Raises:
            FileError: it cannot be written.
        """
        store = Store(path)
        # First and last, so that a directory with this file is whole.
        known = _fingerprint_in(store)
        store.remove(_STUDY)
        if known is not None and dict(known) != dict(self.fingerprint):
            # Of another study: what is left of it must not be taken for this one's.
            for name in ("gradients.safetensors", *(path.name for path in store.root.glob("curves-*"))):
                store.remove(name)
        store.write_json(_RUN, dict(self.fingerprint))
        Plan(
            steps=(Step(structure=self.structure, layers={}),), before=self.before, has_bias=self.has_bias
        ).save(make_directory(store.root) / _UNTOUCHED)
        write_curves(store, self.layers, self.curves)
        store.write_tensors("gradients.safetensors", self.grams)
        kept: str | None = "the study has no data"
        if self._session is not None:
            kept = batches_to_files(store, list(_all_batches(self._session.opened)))
        facts: dict[str, Json] = {
            "format": FORMAT,
            "fingerprint": dict(self.fingerprint),
            "methods": list(self.methods),
            "unit": self.unit,
            "notes": [[note.where, note.text] for note in self.notes],
            "seconds": [[phase, taken] for phase, taken in self.seconds.items()],
            "inputs": kept is None,
            "inputs_reason": kept,
            "options": _options_to_json(self._session.options) if self._session is not None else None,
            "outputs": _outputs_to_json(self._session.outputs) if self._session is not None else None,
        }
        store.write_json(_STUDY, facts)

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
        run_dir: str | os.PathLike[str] | None = None,
        progress: bool = True,
    ) -> "Study":
        """Reads a study that ``save`` or ``run_dir=`` left.

        Args:
            path: the directory.
            model: the same model, same weights; needed to apply plans, not to make them.
            batches: the same data; None takes the inputs that were saved.
            inputs: as in ``slimrank.study``, for ``batches``.
            outputs: as in ``slimrank.study``; needed again where it was a function.
            run_dir: where ``apply`` keeps fitted layers, so that a killed one goes on; None for nowhere.
            progress: show bars in later work.

        Returns:
            The study.

        Raises:
            FileError: a file is missing, truncated or altered.
            StudyError: the model or the data are not those of the study.
        """
        store = Store(path)
        if store.has(_RUN) and not store.has(_STUDY):
            raise StudyError(
                f"the study in {store.root} was not finished; run it again with this run_dir to go on"
            )
        facts = store.read_json(_STUDY)
        if facts.get("format") != FORMAT:
            raise FileError(
                f"{store.root / _STUDY} has format {facts.get('format')!r}, this version reads {FORMAT}; "
                "run the study again"
            )
        untouched = Plan.load(store.root / _UNTOUCHED)
        structure = untouched.steps[0].structure
        fingerprint = {str(key): str(value) for key, value in _object(facts, "fingerprint").items()}
        study = cls(
            structure=structure,
            before=untouched.before,
            has_bias=untouched.has_bias,
            curves=read_curves(store, tuple(structure.layers.values())),
            methods=tuple(method for method in METHODS if method in _list(facts, "methods")),
            grams=store.read_tensors("gradients.safetensors"),
            unit=str(facts.get("unit")),
            notes=tuple(
                Note(where=str(n[0]), text=str(n[1])) for n in _list(facts, "notes") if isinstance(n, list)
            ),
            seconds={
                str(pair[0]): float(str(pair[1]))
                for pair in _list(facts, "seconds")
                if isinstance(pair, list)
            },
            fingerprint=fingerprint,
        )
        if model is None:
            return study
        if facts.get("outputs") == "function" and outputs is None:
            raise StudyError(
                "the study was made with outputs= as a function, which no file can keep; "
                "pass the same outputs= again"
            )
        kept = facts.get("outputs")
        if outputs is None and isinstance(kept, str | int):
            outputs = kept
        return study._with_model(store, facts, model, batches, inputs, outputs, run_dir, progress)

    def _with_model(
        self,
        store: Store,
        facts: Mapping[str, Json],
        model: nn.Module,
        batches: Iterable[object] | None,
        inputs: Inputs,
        outputs: OutputChoice,
        run_dir: str | os.PathLike[str] | None,
        progress: bool,
    ) -> "Study":
        check_structure(
            Plan(
                steps=(Step(structure=self.structure, layers={}),), before=self.before, has_bias=self.has_bias
            ),
            structure_of(describe_layers(model)),
        )
        options = _options_from_json(_object(facts, "options"))
        if batches is None:
            if facts.get("inputs") is not True:
                raise StudyError(
                    f"{store.root} holds no inputs ({facts.get('inputs_reason')}); "
                    "pass batches= to apply plans"
                )
            device = next((p.device for p in model.parameters()), torch.device("cpu"))
            batches, inputs = batch_from_files(store), _mover(device)
        opened = open_data(model, batches, inputs, outputs, options, Phases(shown=False))
        found = _fingerprint(model, opened, outputs, options)
        differing = [key for key, value in found.items() if self.fingerprint.get(key) != value]
        if differing:
            raise StudyError(
                f"the study in {store.root} was made of other {' and '.join(differing)}; "
                "pass the same model and data, or study again"
            )
        device = next(opened.original.parameters()).device
        session = Session(
            opened=opened,
            outputs=outputs,
            options=options,
            progress=progress,
            run_dir=None if run_dir is None else Path(run_dir),
            fingerprint=found,
        )
        return replace(
            self, _session=session, grams={name: gram.to(device) for name, gram in self.grams.items()}
        )


@outside_inference_mode
def study(
    model: nn.Module,
    batches: Iterable[object],
    *,
    inputs: Inputs = None,
    outputs: OutputChoice = None,
    likelihood: LikelihoodChoice = "auto",
    methods: Sequence[Method] = METHODS,
    skip: Sequence[str] = (),
    fisher: bool = True,
    draws: int = 4,
    holdout: float = 0.2,
    data_free: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Study:
    """Measures what every layer of a model can lose. No labels, no training; the model is not changed.

    Args:
        model: any module.
        batches: a re-iterable (list, DataLoader) of unlabelled inputs: a tensor (first argument), a tuple
            (positional) or a dict (keywords) each. A few hundred samples are a good number.
        inputs: turns what the loader yields into inputs, e.g. ``lambda b: b[0]`` for (input, label); None for
            as it is.
        outputs: which outputs matter: a function of what the model returns, a key or an index; None for
            ``logits`` where there are any, else all floating tensors.
        likelihood: how outputs are read: "categorical", "bernoulli", "gaussian" or "auto".
        methods: methods to measure.
        skip: layer-name globs to leave alone.
        fisher: weigh errors by label-free output gradients; False uses inputs only.
        draws: label-free draws per sample.
        holdout: share of samples kept out of fits, for guards and measured divergences.
        data_free: use weights only (plain SVD); batches then only tell shapes and measure the result.
        run_dir: directory for what is measured, so that a killed study goes on; None for nowhere.
        progress: show bars on stderr.
        seed: of everything drawn.

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
        OptionError: another option out of range.
        StudyError: ``run_dir`` holds a study of something else.
    """
    if isinstance(methods, str):
        raise OptionError(f"methods is the text {methods!r}; give a tuple: methods=({methods!r},)")
    options = Options(
        methods=_in_order(methods),
        skip=_globs(skip),
        likelihood=likelihood,
        fisher=fisher,
        draws=draws,
        holdout=holdout,
        data_free=data_free,
        seed=seed,
    )
    check_options(options)
    _check_model(model)
    phases = Phases(shown=progress)
    opened = open_data(model, batches, inputs, outputs, options, phases)
    fingerprint = _fingerprint(model, opened, outputs, options)
    store = None if run_dir is None else Store(run_dir)
    if store is not None:
        _claim(store, fingerprint)
    measured = measure(opened, outputs, options, phases, store)
    session = Session(
        opened=opened,
        outputs=outputs,
        options=options,
        progress=progress,
        run_dir=None if store is None else store.root,
        fingerprint=fingerprint,
    )
    done = Study(
        structure=structure_of(measured.layers),
        before=opened.captured.before,
        has_bias=options.has_bias,
        curves=measured.curves,
        methods=options.methods,
        grams=measured.grams,
        unit=session.damage_unit,
        notes=(*opened.notes, *measured.notes),
        seconds=phases.seconds,
        fingerprint=fingerprint,
        _session=session,
    )
    if store is not None:
        done.save(store.root)
    return done


@outside_inference_mode
def apply(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[object] | None = None,
    *,
    inputs: Inputs = None,
    outputs: OutputChoice = None,
    likelihood: LikelihoodChoice = "auto",
    fisher: bool = True,
    draws: int = 4,
    holdout: float = 0.2,
    on_layer: OnLayer | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Result:
    """Replays a plan on a freshly built copy of the model it was made for.

    Args:
        model: the same architecture, trained; it is copied.
        plan: e.g. from ``Plan.load``.
        batches: unlabelled inputs to fit layers to; None takes factors from the weights alone, and the result
            says so.
        inputs: as in ``slimrank.study``.
        outputs: as in ``slimrank.study``.
        likelihood: as in ``slimrank.study``.
        fisher: as in ``slimrank.study``.
        draws: as in ``slimrank.study``.
        holdout: as in ``slimrank.study``.
        on_layer: called as ``on_layer(model, layer_name)`` after each compressed layer, in order.
        progress: show bars on stderr.
        seed: of everything drawn.

    Returns:
        The result.

    Raises:
        PlanError: the plan belongs to another model.
        SlimrankError: as in ``slimrank.study``, for the batches.
    """
    _check_model(model)
    _check_plan(plan)
    check_on_layer(on_layer)
    check_structure(plan, structure_of(describe_layers(model)))
    check_weights(model)
    phases = Phases(shown=progress)
    if batches is None:
        return build_from_weights(model, plan, on_layer, phases)
    options = Options(
        methods=METHODS,
        skip=(),
        likelihood=likelihood,
        fisher=fisher,
        draws=draws,
        holdout=holdout,
        data_free=False,
        seed=seed,
    )
    check_options(options)
    opened = open_data(model, batches, inputs, outputs, options, phases)
    grams = gather_gradients(opened, list(plan.settings), outputs, options, phases, None)
    session = Session(
        opened=opened, outputs=outputs, options=options, progress=progress, run_dir=None, fingerprint={}
    )
    result = build_result(session, plan, grams, (), on_layer, True, phases)
    return result.with_notes(opened.notes, phases.seconds)


@outside_inference_mode
def compress(
    model: nn.Module,
    batches: Iterable[object],
    *,
    macs: float | None = None,
    params: float | None = None,
    bytes: float | None = None,
    compete: bool = True,
    multiple_of: int | Mapping[str, int] = 1,
    on_layer: OnLayer | None = None,
    inputs: Inputs = None,
    outputs: OutputChoice = None,
    likelihood: LikelihoodChoice = "auto",
    methods: Sequence[Method] = METHODS,
    skip: Sequence[str] = (),
    fisher: bool = True,
    draws: int = 4,
    holdout: float = 0.2,
    data_free: bool = False,
    run_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Result:
    """Study, plan and apply in one call; several plans compete by the held-out divergence of the built model.

    Args:
        model: any module.
        batches: as in ``slimrank.study``.
        macs: keep ratio of the MACs, in (0, 1]; at least one budget is needed, several hold together.
        params: keep ratio of the params.
        bytes: keep ratio of the bytes.
        compete: also build the single-method and the uniform plan, and return the best; False builds the
            optimal plan.
        multiple_of: as in ``Study.plan``.
        on_layer: as in ``Study.apply``; called for every plan that competes.
        inputs: as in ``slimrank.study``.
        outputs: as in ``slimrank.study``.
        likelihood: as in ``slimrank.study``.
        methods: as in ``slimrank.study``.
        skip: as in ``slimrank.study``.
        fisher: as in ``slimrank.study``.
        draws: as in ``slimrank.study``.
        holdout: as in ``slimrank.study``.
        data_free: as in ``slimrank.study``.
        run_dir: as in ``slimrank.study``.
        progress: as in ``slimrank.study``.
        seed: as in ``slimrank.study``.

    Returns:
        The best result; its notes list every plan that was tried.

    Raises:
        SlimrankError: as in ``slimrank.study`` and ``Study.plan``.
    """
    check_on_layer(on_layer)
    if macs is None and params is None and bytes is None:
        raise BudgetError(
            "compress needs a budget; give macs=, params= or bytes= as a keep ratio, e.g. macs=0.5"
        )
    for name, ratio in (("macs", macs), ("params", params), ("bytes", bytes)):
        is_number = isinstance(ratio, int | float) and not isinstance(ratio, bool)
        if ratio is not None and not (is_number and 0 < ratio <= 1):
            raise BudgetError(f"{name}={ratio!r} is no keep ratio; give a number in (0, 1], e.g. {name}=0.5")
    measured = study(
        model,
        batches,
        inputs=inputs,
        outputs=outputs,
        likelihood=likelihood,
        methods=methods,
        skip=skip,
        fisher=fisher,
        draws=draws,
        holdout=holdout,
        data_free=data_free,
        run_dir=run_dir,
        progress=progress,
        seed=seed,
    )

    def planned(select: Literal["optimal", "uniform"], only: Sequence[Method] | None) -> Plan:
        return measured.plan(
            macs=macs, params=params, bytes=bytes, multiple_of=multiple_of, select=select, methods=only
        )

    plans = {"optimal": planned("optimal", None)}
    notes: list[Note] = []
    if compete:
        applying = [method for method in measured.methods if any(c.method == method for c in measured.curves)]
        rivals, notes = _rival_plans(applying, planned, plans["optimal"])
        plans |= rivals
    return _best_of(measured, plans, notes, on_layer)


def _rival_plans(
    methods: Sequence[Method],
    planned: Callable[[Literal["optimal", "uniform"], Sequence[Method] | None], Plan],
    optimal: Plan,
) -> tuple[dict[str, Plan], list[Note]]:
    """The uniform and the single-method plans, where they differ; notes on those out of reach."""
    plans: dict[str, Plan] = {}
    notes: list[Note] = []
    asked: list[tuple[str, Literal["optimal", "uniform"], Sequence[Method] | None]] = [
        ("uniform", "uniform", None)
    ]
    if len(methods) > 1:
        asked += [(f"optimal, {method} only", "optimal", (method,)) for method in methods]
    for label, select, only in asked:
        try:
            plan = planned(select, only)
        except BudgetError as error:
            notes.append(Note(where="compete", text=f"{label}: out of reach ({str(error).split(';')[0]})"))
            continue
        if all(plan.settings != other.settings for other in (optimal, *plans.values())):
            plans[label] = plan
    return plans, notes


def _best_of(
    measured: Study, plans: Mapping[str, Plan], notes: Sequence[Note], on_layer: OnLayer | None
) -> Result:
    """Builds every plan and keeps the one with the lowest held-out divergence."""
    best: tuple[float, str, Result] | None = None
    values: dict[str, float] = {}
    seconds = dict(measured.seconds)
    for label, plan in plans.items():
        result = measured.apply(plan, on_layer=on_layer)
        values[label] = float("inf") if result.divergence is None else result.divergence
        for phase in ("apply", "verify"):
            seconds[phase] = seconds.get(phase, 0.0) + result.seconds.get(phase, 0.0)
        if best is None or values[label] < best[0]:
            best = (values[label], label, result)
    if best is None:
        raise BudgetError("there is no plan to build")
    _, winner, result = best
    told = [
        Note(
            where="compete",
            text=f"{label} plan: held-out divergence {value:.4g} {result.unit}"
            + (" (returned)" if label == winner and len(plans) > 1 else ""),
        )
        for label, value in values.items()
    ]
    return result.with_notes([*notes, *told], seconds)


def load(path: str | os.PathLike[str], *, model: nn.Module) -> nn.Module:
    """Rebuilds a compressed model that ``Result.save`` wrote.

    Args:
        path: the directory.
        model: the original architecture, freshly built; it is copied, its weights do not matter.

    Returns:
        The compressed model with its weights, in eval mode.

    Raises:
        FileError: a file is missing, truncated or altered.
        PlanError: the directory belongs to another model.
    """
    _check_model(model)
    return load_artifact(path, model)


def _in_order(methods: Sequence[Method]) -> tuple[Method, ...]:
    """Known methods in the order of the table, once each; unknown ones last, to be refused."""
    unknown = tuple(method for method in methods if method not in METHODS)
    return (*(method for method in METHODS if method in methods), *unknown)


def _globs(skip: Sequence[str]) -> tuple[str, ...]:
    """One glob as text stands for itself."""
    return (skip,) if isinstance(skip, str) else tuple(skip)


def _check_plan(plan: object) -> None:
    if not isinstance(plan, Plan):
        raise OptionError(
            f"plan is a {type(plan).__name__}; give a Plan, e.g. study.plan(macs=0.5) or Plan.load(path)"
        )


def _check_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise OptionError(f"model is a {type(model).__name__}; give a torch.nn.Module")


def _fingerprint(model: nn.Module, opened: Opened, outputs: OutputChoice, options: Options) -> dict[str, str]:
    kinds = [(name, type(module).__name__, module.extra_repr()) for name, module in model.named_modules()]
    picked = (
        _code_of(outputs) if callable(outputs) else outputs,
        [(name, output.family, output.shape) for name, output in opened.likelihood.outputs.items()],
    )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if isinstance(tensor, Tensor)}
    return {
        "structure": structure_of(describe_layers(model)).sha256,
        "weights": digest_tensors(tensors),
        "modules": hashlib.sha256(repr(kinds).encode()).hexdigest(),
        "inputs": opened.feed.fingerprint,
        "options": hashlib.sha256(repr(options).encode()).hexdigest(),
        "outputs": hashlib.sha256(repr(picked).encode()).hexdigest(),
    }


def _code_of(function: Callable[[object], object]) -> str:
    """What a function does, as far as its code tells."""
    code = getattr(function, "__code__", None)
    return repr(function) if code is None else repr((code.co_code, code.co_consts, code.co_names))


def _fingerprint_in(store: Store) -> Mapping[str, Json] | None:
    """Of the study that a directory holds; None where it holds none."""
    if store.has(_RUN):
        return store.read_json(_RUN)
    return _object(store.read_json(_STUDY), "fingerprint") if store.has(_STUDY) else None


def _claim(store: Store, fingerprint: Mapping[str, str]) -> None:
    """Ties a run directory to a study, or finds it tied to this one."""
    found = _fingerprint_in(store)
    if found is None:
        store.write_json(_RUN, dict(fingerprint))
        return
    differing = [key for key, value in fingerprint.items() if found.get(key) != value]
    if differing:
        raise StudyError(
            f"{store.root} holds a study of other {' and '.join(differing)}; "
            "give another run_dir or delete it"
        )


def _all_batches(opened: Opened) -> Iterable[Batch]:
    feed = opened.feed
    for raw in feed.batches:
        yield feed.read(raw)


def _mover(device: torch.device) -> Inputs:
    def move(raw: object) -> object:
        return map_tensors(raw, lambda tensor: tensor.to(device))

    return move


def _options_to_json(options: Options) -> Json:
    return {
        "methods": list(options.methods),
        "skip": list(options.skip),
        "likelihood": options.likelihood,
        "fisher": options.fisher,
        "draws": options.draws,
        "holdout": options.holdout,
        "data_free": options.data_free,
        "seed": options.seed,
    }


def _options_from_json(value: Mapping[str, Json]) -> Options:
    return Options(
        methods=tuple(method for method in METHODS if method in _list(value, "methods")),
        skip=tuple(str(pattern) for pattern in _list(value, "skip")),
        likelihood=str(value["likelihood"]),  # type: ignore[arg-type]
        fisher=bool(value["fisher"]),
        draws=int(str(value["draws"])),
        holdout=float(str(value["holdout"])),
        data_free=bool(value["data_free"]),
        seed=int(str(value["seed"])),
    )


def _outputs_to_json(outputs: OutputChoice) -> Json:
    if outputs is None or isinstance(outputs, str | int):
        return outputs
    return "function"


def _object(facts: Mapping[str, Json], key: str) -> dict[str, Json]:
    value = facts.get(key)
    if not isinstance(value, dict):
        raise FileError(f"study.json: {key} is {type(value).__name__}, not an object; study again")
    return value


def _list(facts: Mapping[str, Json], key: str) -> list[Json]:
    value = facts.get(key)
    if not isinstance(value, list):
        raise FileError(f"study.json: {key} is {type(value).__name__}, not a list; study again")
    return value
