# SPDX-License-Identifier: Apache-2.0
"""AIMET's pickled eval scores, read by an unpickler that builds numbers and texts only."""

import os
import pickle
from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from io import BytesIO
from math import floor, isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from slimrank._errors import FileError, OptionError, ScoreError, UnknownNameError
from slimrank._names import listed, nearest
from slimrank.cost import FORMS, forms_of, layer_cost, max_rank, pair_cost
from slimrank.plan import Structure
from slimrank.records import Form, LayerSpec, Method
from slimrank.scores._entry import ScoreEntry
from slimrank.scores._file import ScoresFields

# The classes that the pickle may name: enough for numbers and texts, none that could run code. Python 2 wrote
# its own as ``__builtin__``.
_ADMITTED: Mapping[str, type] = MappingProxyType(
    {
        "decimal.Decimal": Decimal,
        **{
            f"{module}.{kind.__name__}": kind
            for module in ("builtins", "__builtin__")
            for kind in (dict, str, float, int)
        },
    }
)
# The forms that AIMET builds; a 1x1 convolution has one factorisation.
_AIMET_FORMS: Mapping[Method, tuple[Form, ...]] = MappingProxyType(
    {"weight_svd": ("linear", "1x1_kxk", "kxk_1x1"), "spatial_svd": ("v_h",)}
)


class StudyLike(Protocol):
    """What a table of another tool is tied to: a study, or anything else with these properties."""

    @property
    def structure(self) -> Structure:
        """Of the model."""
        ...

    @property
    def fingerprint(self) -> Mapping[str, str]:
        """Of structure, weights, inputs and options."""
        ...


class _NumbersUnpickler(pickle.Unpickler):
    """An unpickler that refuses every class but those of plain numbers and texts."""

    def find_class(self, module_name: str, global_name: str, /) -> type:
        """The class, where it is admitted."""
        name = f"{module_name}.{global_name}"
        if name not in _ADMITTED:
            raise ScoreError(
                f"{name} is refused: an eval-score file may hold dict, str, float, int and Decimal only; "
                "save the scores as plain floats"
            )
        return _ADMITTED[name]


def read_aimet(
    path: str | os.PathLike[str],
    study: StudyLike,
    *,
    method: Method,
    baseline: float | None,
    lower_is_better: bool,
) -> ScoresFields:
    """Read the eval-score dictionary that AIMET pickled.

    Args:
        path: of the pickle, ``{layer name: {Decimal ratio: score}}``.
        study: of the same model.
        method: that AIMET explored.
        baseline: score of the untouched model; None takes the best score in the file.
        lower_is_better: the score is a loss or an error rate.

    Returns:
        The fields of a table.

    Raises:
        FileError: the file is missing or cannot be read.
        ScoreError: it is no such pickle, or names a class that is refused.
        UnknownNameError: a layer or method that does not exist.
        OptionError: a layer to which the method does not apply, or a baseline that is no number.
    """
    if method not in FORMS:
        raise UnknownNameError(f"method {method!r} does not exist; {nearest(str(method), _AIMET_FORMS)}")
    if baseline is not None and not isfinite(baseline):
        raise OptionError(f"baseline={baseline!r}; give the score of the untouched model, a finite number")
    where = f"AIMET's eval scores {Path(path)}"
    table = _scores_by_layer(_unpickled(path, where), where)
    layers = study.structure.layers
    for name in table:
        if name not in layers:
            raise UnknownNameError(f"{where}: the model has no layer {name!r}; {nearest(name, layers)}")
    entries = {
        name: _entries_of_layer(layers[name], table[name], method, where) for name in layers if name in table
    }
    useless = [name for name, rows in entries.items() if not rows]
    notes = []
    if useless:
        notes.append(f"{listed(useless)}: every rank costs as much as the layer, so no score of it was kept")
    entries = {name: rows for name, rows in entries.items() if rows}
    if baseline is None:
        found = [score for scores in table.values() for score in scores.values()]
        baseline = min(found) if lower_is_better else max(found)
        notes.append(
            f"AIMET keeps no score of the untouched model; the best one in the file, {baseline:g}, stands "
            "for it"
        )
    return ScoresFields(
        fingerprint=dict(study.fingerprint),
        baseline=float(baseline),
        lower_is_better=lower_is_better,
        methods=(method,),
        candidates=tuple(sorted({float(ratio) for scores in table.values() for ratio in scores})),
        entries=entries,
        notes=tuple(notes),
        groups={},
    )


def _unpickled(path: str | os.PathLike[str], where: str) -> object:
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise FileError(
            f"{where}: cannot be read ({error}); give greedy_selection_eval_scores_dict.pkl"
        ) from error
    try:
        content: object = _NumbersUnpickler(BytesIO(data)).load()
    except ScoreError as error:
        raise ScoreError(f"{where}: {error}") from error
    except Exception as error:
        # A damaged pickle fails in as many ways as there are instructions in it.
        raise ScoreError(
            f"{where}: no pickle of eval scores, or cut short ({type(error).__name__}: {error}); give "
            "greedy_selection_eval_scores_dict.pkl"
        ) from error
    return content


def _scores_by_layer(content: object, where: str) -> dict[str, dict[Fraction, float]]:
    """The scores by layer and ratio; ratios as the exact fractions that their digits mean."""
    if type(content) is not dict or not content:
        raise ScoreError(
            f"{where}: it holds {type(content).__name__}, not a dictionary of layers with scores"
        )
    table: dict[str, dict[Fraction, float]] = {}
    for name, scores in content.items():
        if type(name) is not str or type(scores) is not dict or not scores:
            raise ScoreError(f"{where}: entry {name!r} is no layer name with a dictionary of scores")
        table[name] = {}
        for ratio, score in scores.items():
            share, number = _finite_number(ratio), _finite_number(score)
            if share is None or number is None or not 0 < share <= 1:
                raise ScoreError(
                    f"{where}: layer {name!r}: {ratio!r} -> {score!r} is no ratio in (0, 1] with a finite "
                    "score"
                )
            # Through its text, which a float and a Decimal of the same digits share.
            table[name][Fraction(str(ratio))] = number
    return table


def _finite_number(value: object) -> float | None:
    """A finite number; None for anything else."""
    # Not isinstance: true and false are no scores, though Python takes them for 1 and 0.
    if type(value) not in {int, float, Decimal}:
        return None
    try:
        number = float(value)  # type: ignore[arg-type]
    except (OverflowError, ValueError):
        return None
    return number if isfinite(number) else None


def _entries_of_layer(
    spec: LayerSpec, scores: Mapping[Fraction, float], method: Method, where: str
) -> tuple[ScoreEntry, ...]:
    possible = forms_of(spec, method)
    form = next((form for form in _AIMET_FORMS.get(method, ()) if form in possible), None)
    if form is None or method not in spec.methods:
        others = f"it can take {listed(spec.methods)}" if spec.methods else spec.reason or "no method does"
        raise OptionError(
            f"{where}: {method} does not apply to layer {spec.name!r} ({spec.class_name}); {others}: delete "
            "the layer from the dictionary, or name the method that AIMET explored"
        )
    whole = layer_cost(spec).macs
    macs_per_rank = pair_cost(spec, form, 1, has_bias=spec.has_bias).macs
    entries: dict[int, ScoreEntry] = {}
    for ratio in sorted(scores):
        rank = min(max(floor(ratio * whole / macs_per_rank), 1), max_rank(spec, form))
        if rank * macs_per_rank >= whole:
            continue
        # Two ratios may have the same rank; the score of the larger one, which comes last, stays.
        entries[rank] = ScoreEntry(
            method=method,
            form=form,
            rank=rank,
            keep_ratio=rank * macs_per_rank / whole,
            score=scores[ratio],
        )
    return tuple(entries[rank] for rank in sorted(entries))
