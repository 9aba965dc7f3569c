# SPDX-License-Identifier: Apache-2.0
"""The compressed model, and what is known about it."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from slimrank._errors import BatchesError, FileError, ModelError, OptionError, SlimrankError
from slimrank._version import __version__
from slimrank.calibrate import checked_batches
from slimrank.deploy import (
    PLAN_FILE,
    REPORT_FILE,
    ExportSource,
    Precision,
    Reading,
    Recorded,
    Tokenizer,
    check_target,
    export_model,
    record_architecture,
    save_artifact,
    save_pretrained_model,
    update_artifact,
    write_architecture,
)
from slimrank.files import Json, read_text
from slimrank.forward import Batch, outside_inference_mode
from slimrank.pareto import Pareto, pareto_facts
from slimrank.plan import LatencyTable, Plan, has_stacks, has_uniform_widths
from slimrank.records import (
    METRICS,
    ActivationBytes,
    Agreement,
    Cost,
    Curve,
    Exported,
    GroupCurve,
    LayerResult,
    Measurement,
    Metric,
    Note,
    ReachedLatency,
    Summary,
    ratio_of,
)
from slimrank.report import (
    MadeFrom,
    agreement_facts,
    agreement_text,
    cost_facts,
    export_facts,
    exports_from_facts,
    finite_or_none,
    named_in,
    page_data,
    render_page,
    render_text,
    result_data,
    result_notebook,
    warning_facts,
    with_exported,
    with_file,
    with_times,
    write_page,
)
from slimrank.scores import Scores, scores_facts

# Of numbers of bytes, from the largest on.
_BYTE_UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3), ("bytes", 1))
# In the manifest of a saved model.
_EXPORTS = "exports"


@dataclass(frozen=True, slots=True)
class Unrounded:
    """The plan as it would be if ranks and widths were multiples of nothing, made when a report asks for it.

    Copies of a result share it; a pickled result leaves it behind, with the study that it belongs to.

    Attributes:
        make: gives the plan; None where nothing was rounded.
    """

    make: Callable[[], Plan | None]

    def __deepcopy__(self, memo: dict[int, object]) -> "Unrounded":
        """Itself."""
        return self

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """None, for pickle."""
        return type(None), ()


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Result:
    """A compressed model, counted and measured.

    Attributes:
        model: an ordinary module; the caller's model is as it was.
        plan: that it was made by.
        before, after: counted cost of the whole model, for one sample; ``before`` is of the original, however
            many steps the plan has.
        layers: what happened to each layer, in execution order.
        divergence: mean over held-out samples, original against compressed; None where there were no data.
        agreement: the same for people, of each output: share of equal classes, or cosine and relative error;
            None where there were no data.
        damage: predicted sum over the layers; None where nothing was predicted.
        unit: of divergence.
        damage_unit: of damage: the same, or another where the study had no data.
        notes: what the user should know.
        seconds: wall time of each phase.
        group_damages: predicted damage of each slimmed group alone, by name, where a study knows it.
        block_damages: what each dropped block adds to those that cost less, by name, where a study knows it.
        latency: asked, predicted and measured; None where nothing was measured in time.
        activation_bytes: peak of the activations of one sample, before and after; None where there were no
            data, and of several steps where the original is not there.
    """

    model: nn.Module
    plan: Plan
    before: Cost
    after: Cost
    layers: tuple[LayerResult, ...]
    divergence: float | None
    damage: float | None
    unit: str
    damage_unit: str
    notes: tuple[Note, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    group_damages: Mapping[str, float] = field(default_factory=dict)
    block_damages: Mapping[str, float] = field(default_factory=dict)
    agreement: Agreement | None = None
    latency: ReachedLatency | None = None
    activation_bytes: ActivationBytes | None = None
    _source: ExportSource | None = None
    # Of the study that it was planned on, for its report.
    _curves: tuple[Curve, ...] = ()
    _group_curves: tuple[GroupCurve, ...] = ()
    _unrounded: Unrounded | None = field(default=None, compare=False)
    # What that study can be made again by.
    _made: MadeFrom | None = None
    # What the model was exported to, with whole paths: the working directory may change.
    _exports: list[Exported] = field(default_factory=list, compare=False)

    def __repr__(self) -> str:
        ratios = ", ".join(f"{metric} {self.keep_ratio(metric):.4f}" for metric in METRICS)
        measured = "not measured" if self.divergence is None else f"{self.divergence:.4g} {self.unit}"
        if self.agreement:
            measured += f", {agreement_text(self.agreement, brief=True)}"
        return f"Result({ratios}; divergence {measured})"

    def _repr_html_(self) -> str:
        return result_notebook(summary_of(self, ()), self.plan)

    def keep_ratio(self, metric: Metric = "macs") -> float:
        """Counted cost after / cost before.

        Args:
            metric: "macs", "params" or "bytes".

        Returns:
            The ratio; 1.0 where the model costs nothing.

        Raises:
            UnknownNameError: no such metric.
        """
        return ratio_of(self.before, self.after, metric)

    def summary(self, measurements: Sequence[Measurement] = ()) -> str:
        """A table of what was done, as text.

        Args:
            measurements: more numbers before and after (accuracy, latency) to show beside the costs.

        Returns:
            The text.
        """
        return render_text(summary_of(self, measurements), plan=self.plan)

    def report(
        self,
        path: str | os.PathLike[str],
        measurements: Sequence[Measurement] = (),
        *,
        pareto: Pareto | None = None,
        scores: Scores | None = None,
        latencies: LatencyTable | None = None,
    ) -> None:
        """Writes one self-contained HTML page, and its data as JSON beside it.

        Args:
            path: of the page; the data have its name with the suffix ``.json``. Both name the files that the
                result was exported to.
            measurements: as in ``summary``.
            pareto: plans of the same study over their cost, to show this model among them.
            scores: an eval-score table, to show as a map of colours.
            latencies: a table of measured times of the network that the plan was made for
                (``slimrank.measure_latency``), to show the time of each layer, before and after, beside its
                costs.

        Raises:
            FileError: it cannot be written.
            OptionError: something else than a curve or a table.
            PlanError: ``pareto`` is of another model.
            LatencyError: ``latencies`` is of another network.
        """
        page = Path(path)
        data = result_data(
            summary_of(self, measurements, page.parent),
            self.plan,
            curves=self._curves,
            group_curves=self._group_curves,
            unrounded=None if self._unrounded is None else self._unrounded.make(),
            made=self._made,
            pareto=None if pareto is None else pareto_facts(pareto, self.plan.steps[-1].structure),
            scores=None if scores is None else scores_facts(scores),
        )
        if latencies is not None:
            data = with_times(data, latencies, self.plan.steps[-1])
        write_page(page, data)

    def save(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        measurements: Sequence[Measurement] = (),
        architecture: bool = False,
        batches: Iterable[object] | None = None,
        inputs: Callable[[object], object] | None = None,
    ) -> None:
        """Writes ``model.safetensors``, ``plan.json``, ``manifest.json`` and ``report.html``, all or nothing.

        Manifest and report name the files that the result was exported to.

        Args:
            path: a new or empty directory.
            overwrite: replace a directory that holds something.
            measurements: as in ``summary``; for the report.
            architecture: record the model as a program of ``torch.export``, as data, so that
                ``slimrank.load(path)`` needs no class. Nothing is written unless what was recorded answers as
                the model does.
            batches: real inputs to record with; None takes those of the study.
            inputs: as in ``slimrank.study``, for ``batches``.

        Raises:
            NotEmptyError: the directory holds something and ``overwrite`` is False.
            ExportError: the architecture cannot be recorded.
            BatchesError: there are no batches to record it with.
            FileError: it cannot be written.
        """
        if not architecture and (batches is not None or inputs is not None):
            raise OptionError("batches= and inputs= go with architecture=True, which records with them")
        check_target(Path(path).resolve(), overwrite=overwrite)
        recorded, told = None, self
        if architecture:
            recorded, notes = self._record(batches, inputs)
            told = self.with_notes(notes, self.seconds)
        summary = summary_of(told, measurements, Path(path))
        manifest: dict[str, Json] = {**told._manifest(), _EXPORTS: export_facts(summary.exports)}
        data = result_data(
            summary,
            self.plan,
            curves=self._curves,
            group_curves=self._group_curves,
            unrounded=None if self._unrounded is None else self._unrounded.make(),
            made=self._made,
        )
        write_more = None if recorded is None else partial(write_architecture, recorded=recorded)
        save_artifact(
            path,
            self.model,
            self.plan,
            manifest,
            render_page(data),
            overwrite=overwrite,
            write_more=write_more,
        )

    @outside_inference_mode
    def _record(
        self, batches: Iterable[object] | None, inputs: Callable[[object], object] | None
    ) -> tuple[Recorded, tuple[Note, ...]]:
        return record_architecture(self.model, self._samples(batches, inputs))

    @outside_inference_mode
    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        tokenizer: Tokenizer | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Writes a model of transformers so that ``slimrank.from_pretrained`` builds it, all or nothing.

        Beside what ``save`` writes, but the report: its configuration, its generation configuration where it
        generates, the original configuration, and a tokenizer. Nothing there runs code. Before the directory
        takes its place, it is loaded once, so memory for one more model is needed.

        Where only widths changed, alike in all layers (``Study.plan(uniform_widths=True, new_bias=False)``),
        the configuration follows if it can, and ``AutoModel.from_pretrained`` loads the model too. In all
        other cases that call fails and names ``slimrank.from_pretrained``. The logger ``slimrank.pretrained``
        says which it is, and why: as a warning where the plan looks as if it was made for the former.

        Args:
            path: a new or empty directory.
            tokenizer: or processor, to save with the model; None for none.
            overwrite: replace a directory that holds something.

        Raises:
            MissingPackageError: transformers is not installed.
            ModelError: the model is of no class of transformers, or its configuration builds another one.
            OptionError: the tokenizer cannot be saved, or needs code of its own.
            NotEmptyError: the directory holds something and ``overwrite`` is False.
            FileError: it cannot be written.
        """
        manifest: dict[str, Json] = {
            **self._manifest(),
            _EXPORTS: export_facts(_exports_in(Path(path), self._exports)),
        }
        batch = None if self._source is None else next(iter(self._source.batches()), None)
        save_pretrained_model(
            path,
            self.model,
            self.plan,
            manifest,
            tokenizer=tokenizer,
            overwrite=overwrite,
            wants_ordinary=self._wants_ordinary(),
            batch=batch,
        )

    def _wants_ordinary(self) -> bool:
        """Whether it looks planned with ``uniform_widths=True`` or, on data, with ``new_bias=False``."""
        plan = self.plan
        if not plan.steps:
            return False
        channels = plan.steps[-1].structure.channels
        is_uniform = has_stacks(plan.groups, channels) and has_uniform_widths(plan.groups, channels)
        used_data = any(layer.fit not in (None, "weights") for layer in self.layers)
        return is_uniform or (used_data and not plan.has_bias)

    @outside_inference_mode
    def export(
        self,
        path: str | os.PathLike[str],
        *,
        format: str = "onnx",
        quantize: Precision | None = None,
        max_quant_drop: float | None = None,
        batches: Iterable[object] | None = None,
        inputs: Callable[[object], object] | None = None,
        batch: int = 1,
        threads: int = 1,
    ) -> Exported:
        """Writes the model to a file that another runtime reads, checked and timed in that runtime.

        Args:
            path: of the file, as in ``slimrank.export``.
            format: as in ``slimrank.export``.
            quantize: as in ``slimrank.export``.
            max_quant_drop: as in ``slimrank.export``.
            batches: real inputs; None takes those of the study.
            inputs: as in ``slimrank.study``, for ``batches``.
            batch: samples in the batches that are timed.
            threads: of the runtime while it is timed.

        Returns:
            What was written, how exact it is, and how fast beside the original.

        Raises:
            BatchesError: there are no batches: the result was made without data, or was pickled.
            SlimrankError: as in ``slimrank.export``.
        """
        source = self._source
        samples = self._samples(batches, inputs)
        reading = Reading()
        if source is not None:
            reading = Reading(outputs=source.outputs, likelihood=source.likelihood)
        exported = export_model(
            self.model,
            path,
            samples,
            format=format,
            reading=reading,
            original=None if source is None else source.original,
            batch=batch,
            threads=threads,
            quantize=quantize,
            max_quant_drop=max_quant_drop,
        )
        if source is not None and len(self.plan.steps) > 1 and not source.is_first:
            text = "before is the model that the last step started from, not the first original"
            exported = replace(exported, notes=(*exported.notes, Note(where=format, text=text)))
        self._remember(exported)
        return exported

    def _samples(
        self, batches: Iterable[object] | None, inputs: Callable[[object], object] | None
    ) -> Iterable[Batch]:
        """The caller's batches, or those of the study."""
        if batches is not None:
            return checked_batches(batches, inputs, self.model)
        if inputs is not None:
            raise OptionError(
                "inputs= goes with batches=; those of the study are read as the study read them"
            )
        if self._source is None:
            raise BatchesError(
                "this result knows no data (it was made without batches, or comes from a pickle); pass "
                "batches="
            )
        return self._source.batches()

    def with_notes(self, notes: Sequence[Note], seconds: Mapping[str, float]) -> "Result":
        """The same result with notes added and other times."""
        return replace(self, notes=(*self.notes, *notes), seconds=dict(seconds), _exports=list(self._exports))

    def with_model(self, model: nn.Module) -> "Result":
        """The same result around a model whose weights were trained further.

        Args:
            model: what training made of ``model``: same modules and shapes.

        Returns:
            A new result with this model, without divergence, agreement, what they warned of, and exported
            files: these belonged to the weights as fitted.

        Raises:
            OptionError: no module.
            ModelError: tensors that this result's model does not have, or of other shapes.
        """
        if not isinstance(model, nn.Module):
            raise OptionError(f"model is a {type(model).__name__}; give a torch.nn.Module")
        shapes, trained_shapes = (
            {key: _shape_or_type(value) for key, value in module.state_dict().items()}
            for module in (self.model, model)
        )
        names = shapes.keys() | trained_shapes.keys()
        differing = sorted(name for name in names if shapes.get(name) != trained_shapes.get(name))
        if differing:
            raise ModelError(
                f"model is not this result's, trained further: {len(differing)} tensors differ in name or "
                f"shape ({', '.join(differing[:4])}); give what finetune, distill or you made of result.model"
            )
        note = Note(where="train", text="weights were trained after the fit; damage tells of the fit alone")
        notes = (*(kept for kept in unwarned(self.notes) if kept != note), note)
        return replace(self, model=model, divergence=None, agreement=None, notes=notes, _exports=[])

    def _remember(self, exported: Exported) -> None:
        path = exported.path.parent.resolve() / exported.path.name
        self._exports[:] = with_file(self._exports, replace(exported, path=path))

    def _manifest(self) -> dict[str, Json]:
        costs: dict[str, Json] = {
            "before": cost_facts(self.before),
            "after": cost_facts(self.after),
        }
        return {
            "slimrank": __version__,
            "model": type(self.model).__name__,
            "costs": costs,
            "divergence": finite_or_none(self.divergence),
            "agreement": None
            if self.agreement is None
            else agreement_facts(self.agreement, has_elements=False),
            "damage": finite_or_none(self.damage),
            "unit": self.unit,
            "damage_unit": self.damage_unit,
            "warnings": warning_facts(self.notes),
            "notes": [str(note) for note in self.notes],
            **({} if self.latency is None else {"latency": dict(asdict(self.latency))}),
            **({} if self.activation_bytes is None else {"activation_bytes": asdict(self.activation_bytes)}),
        }


def unwarned(notes: Sequence[Note]) -> tuple[Note, ...]:
    """Notes without the warnings of what was measured on the result: another model needs others."""
    return tuple(note for note in notes if not (note.is_warning and note.where == "verify"))


def add_export(directory: Path, exported: Exported) -> None:
    """Names an exported file in the manifest and the report of a model that was saved before.

    Args:
        directory: of the saved model; where the file was named there before, this takes its place.
        exported: the file, made of this model.

    Raises:
        FileError: manifest or report cannot be read or written, or are of another version; both are as they
            were.
    """

    def change(manifest: Mapping[str, Json], html: str | None) -> tuple[Mapping[str, Json], str | None]:
        known = exports_from_facts(manifest.get(_EXPORTS, []), f"manifest of {directory}: {_EXPORTS}")
        files = with_file(known, named_in(directory, exported))
        changed: dict[str, Json] = {**manifest, _EXPORTS: export_facts(files)}
        return changed, None if html is None else with_exported(html, export_facts(files))

    update_artifact(directory, change)


def write_saved_report(
    directory: Path,
    page: Path,
    *,
    pareto: Pareto | None = None,
    latencies: LatencyTable | None = None,
) -> None:
    """Writes the report of a saved model to another place, and its data beside it.

    Args:
        directory: of the saved model.
        page: of the report that is written.
        pareto: as in ``Result.report``; what the report shows stays where none is given.
        latencies: likewise.

    Raises:
        FileError: the saved model has no report or plan, or one that cannot be read; or the page cannot be
            written.
        PlanError: ``pareto`` is of another model.
        LatencyError: ``latencies`` is of another network.
    """
    report = directory / REPORT_FILE
    advice = "save the model again"
    html = read_text(report, f"report {report}", advice=advice, error=FileError)
    try:
        data = page_data(html)
    except SlimrankError as error:
        raise FileError(f"report {report}: {error}") from error
    step = Plan.load(directory / PLAN_FILE).steps[-1]
    if pareto is not None:
        data = {**data, "pareto": pareto_facts(pareto, step.structure)}
    if latencies is not None:
        data = with_times(data, latencies, step)
    write_page(page, data)


def summary_of(result: Result, measurements: Sequence[Measurement], directory: Path | None = None) -> Summary:
    """What text, page and JSON tell of a result.

    Args:
        result: any.
        measurements: more numbers before and after, beside the costs.
        directory: from which exported files are named; None names them without their folders.

    Returns:
        The summary.
    """
    return Summary(
        title=f"{type(result.model).__name__}, compressed",
        before=result.before,
        after=result.after,
        start=result.plan.start if len(result.plan.steps) > 1 else result.before,
        layers=result.layers,
        divergence=result.divergence,
        damage=result.damage,
        unit=result.unit,
        damage_unit=result.damage_unit,
        notes=result.notes,
        seconds=result.seconds,
        measurements=(*_memory_counted(result), *_time_measured(result), *measurements),
        group_damages=result.group_damages,
        block_damages=result.block_damages,
        agreement=result.agreement,
        exports=_exports_in(directory, result._exports),
    )


def _memory_counted(result: Result) -> tuple[Measurement, ...]:
    """The peak of activations, as a row of the report."""
    peak = result.activation_bytes
    if peak is None:
        return ()
    largest = max(peak.before, peak.after)
    unit, size = next(((unit, size) for unit, size in _BYTE_UNITS if largest >= size), _BYTE_UNITS[-1])
    name = "peak of activations, one sample"
    return (Measurement(name=name, before=peak.before / size, after=peak.after / size, unit=unit),)


def _time_measured(result: Result) -> tuple[Measurement, ...]:
    """What was measured in time, as a row of the report."""
    latency, planned = result.latency, result.plan.latency
    if latency is None:
        return ()
    where = (
        ""
        if planned is None
        else f" ({planned.backend}, {planned.precision}, batch {planned.batch}, threads {planned.threads})"
    )
    return (Measurement(name=f"latency{where}", before=latency.before_ms, after=latency.after_ms, unit="ms"),)


def _exports_in(directory: Path | None, files: Sequence[Exported]) -> tuple[Exported, ...]:
    """Exported files as a directory names them; of those that have one name there, the last."""
    named: tuple[Exported, ...] = ()
    for exported in files:
        named = with_file(named, named_in(directory, exported))
    return named


def _shape_or_type(value: object) -> object:
    """Of an entry of a state dict: extra state need not be a tensor."""
    return tuple(value.shape) if isinstance(value, Tensor) else type(value)
