# SPDX-License-Identifier: Apache-2.0
"""The only file of the tests that names private modules: when a file moves in ``src``, its line here follows.

First come private functions and classes that have tests of their own. Then come functions that change or
watch what happens inside: to interrupt, to count what is done again, to use fewer samples.
"""

# ruff: noqa: F401 (what is imported here is for the tests)

import platform
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from types import ModuleType
from typing import Literal, TextIO, TypeVar

import click
import pytest
from rich.console import Console
from torch import Tensor, nn

from slimrank import Latencies, OptionError, Study, _progress, _result, live
from slimrank._isotonic import never_falling
from slimrank._names import nearest
from slimrank._numbers import real_number, whole_number
from slimrank._progress import EventFile, Expected, Overall, Phases
from slimrank._result import add_export
from slimrank._study import session_of
from slimrank.aimet._inputs import InputSampler
from slimrank.calibrate import _chunks, _gradients
from slimrank.calibrate._divergence import sampled_loss
from slimrank.calibrate._own_loss import open_loss
from slimrank.capture._activations import alive_by_place, peak_activation_bytes
from slimrank.channels.trace._labels import ANY, Axis, Labels
from slimrank.channels.trace._ops import Op, Traced
from slimrank.channels.trial import _compare
from slimrank.channels.trial._attention_scale import (
    AttentionScores,
    SeenScores,
    is_made_up_for,
    read_products,
    with_queries,
)
from slimrank.channels.trial._compare import Comparison
from slimrank.channels.trial._merge import mergeable, merged
from slimrank.channels.trial._size_search import Hint, candidates, hypotheses, idle_norms, scope_of
from slimrank.cli import _command, _main
from slimrank.cli._command import _in_options as in_options
from slimrank.cli._main import cli
from slimrank.cli._models import outputs_at as outputs_option
from slimrank.cli._references import _object_named as named_reference
from slimrank.cli._references import batches_at, model_at
from slimrank.cli._terminal import fit_tables, fitted_to, wrap_prose
from slimrank.cli._typed import read_likelihood_option as likelihood_option
from slimrank.cli._typed import read_multiple_of as multiple_of_option
from slimrank.cli._typed import read_weights as weights_option
from slimrank.cli._typed import split_names as split_option
from slimrank.demo import _run as _demo_run
from slimrank.deploy import _cpu, _formats, _measure_script, _onnx, _samples, _saved_model, _timing
from slimrank.deploy._architecture import record_architecture
from slimrank.deploy._balance import balance_pairs
from slimrank.deploy._cpu import _has_vnni as cpu_has_vnni
from slimrank.deploy._draft import draft_folder, move_into_place
from slimrank.deploy._executorch import executorch_package
from slimrank.deploy._executorch_profile import trace_times
from slimrank.deploy._export import OpenFile, int8_cure, int8_timing_notes, timing_notes
from slimrank.deploy._formats import FORMATS, Format
from slimrank.deploy._graph_values import function_named
from slimrank.deploy._judge import decibels, signal_and_noise
from slimrank.deploy._layer_noise import _round_values as round_values
from slimrank.deploy._measure_script import (
    OLDEST_ONNXRUNTIME,
    MeasureError,
    Times,
    compare_in_turns,
    measure_folder,
    profile_time,
    values_by_node,
)
from slimrank.deploy._measure_script import Comparison as TimeComparison
from slimrank.deploy._named_model import NamedModel, named_model
from slimrank.deploy._node_times import GraphNode, nearest_product, sources_of
from slimrank.deploy._onnx_profile import _graph_of as onnx_graph_of
from slimrank.deploy._openvino_profile import node_times, single_runs, stable_names
from slimrank.deploy._packages import import_package
from slimrank.deploy._quantize import check_drop
from slimrank.deploy._quiet import EXPORT_TURN
from slimrank.deploy._recorded_model import RecordedModel
from slimrank.deploy._samples import is_constant, read_samples
from slimrank.deploy._timing import time_in_turns
from slimrank.fitting import Data, _alive_batches, _fit, _fit_layer, _install, _seen
from slimrank.fitting._alive_batches import choose_alive
from slimrank.fitting._context import PendingLayer
from slimrank.fitting._fit import Fit, LayerStatistics, best_fit
from slimrank.fitting._gather import affine_of, have_same_positions
from slimrank.fitting._goals import bias_like, ridges_to_try, wanted_outputs, wanted_weight
from slimrank.fitting._install import checked_layer
from slimrank.fitting._install import fill as fill_pair
from slimrank.fitting._journal import fit_from_journal, fit_to_tensors
from slimrank.fitting._layer_tasks import layer_tasks
from slimrank.fitting._rows import Gathered, Rows, thinned_rows
from slimrank.forward import Batch
from slimrank.forward._record import handing_out, recording
from slimrank.latencies import LatencyRecord, Parts, Place, VariantTime
from slimrank.latency import BACKENDS, Backend, _backends, _elsewhere
from slimrank.latency import _measure as _measure_latency
from slimrank.latency._fit import Measured, fit_times
from slimrank.latency._fit_whole import fit_whole_times
from slimrank.latency._measure import _parts as profiled_parts
from slimrank.latency._measure import finished_table
from slimrank.latency._parts import node_counts, parts_of, without_overhead
from slimrank.latency._step import step_network, step_told, steps_of_nodes
from slimrank.latency._variants import shared_step, useful_ranks, without_useful_rank
from slimrank.linalg import Moments, _moments, _obs, _output_basis, _split_pair
from slimrank.linalg._split_pair import _normal_equations as normal_equations
from slimrank.live._guard import Guard
from slimrank.methods import MethodRow, _pair, _table
from slimrank.methods._curves import true_error
from slimrank.methods._tucker import _excess as excess_of
from slimrank.methods._tucker import _path_along as path_along
from slimrank.methods._tucker import rank_path
from slimrank.plan import Plan
from slimrank.plan._channels_file import channels_from_json, channels_to_json, units_from_json, units_to_json
from slimrank.plan._rounding import rank_multiple, rounding_steps, width_multiple
from slimrank.plan._step import group_is_inside
from slimrank.recipes import _compress, _meet_latency, _replay, _score_trials
from slimrank.recipes._builds import Builds
from slimrank.recipes._compete import Rivals
from slimrank.recipes._meet_latency import corrected as corrected_times
from slimrank.recipes._smallest import _Bisection as Bisection
from slimrank.records import Family
from slimrank.recover._checkpoint import (
    Checkpoint,
    TrainingState,
    load_optimizer_,
    optimizer_state,
    restore_,
    snapshot,
)
from slimrank.recover._distill import _Distillation as Distillation
from slimrank.recover._distill import _relative_error as relative_error
from slimrank.recover._distill import _run_with_features as run_with_features
from slimrank.recover._examples import Example, TrainingData, open_training_data, read_with
from slimrank.recover._norms import reestimate_, running_norms
from slimrank.recover._train import _share_of_rate as share_of_rate
from slimrank.report._agreement import (
    agreement_lines,
    divergence_text,
    element_lists,
    has_elements,
    output_table,
    output_unit,
)
from slimrank.report._groups import counts_text, damage_at_half, kept_rows, readers_of
from slimrank.report._numbers import (
    format_change,
    format_cosine,
    format_count,
    format_damage,
    format_measured,
    format_metric,
    format_percent,
    format_phases,
    format_ratio,
    format_seconds,
    format_share,
    format_short,
    macs_elsewhere,
)
from slimrank.report._words import multiples_text
from slimrank.report.page._render import OLD_MARKS
from slimrank.scores._scores import with_flat_note
from slimrank.select._budget import cost_limit
from slimrank.select._option_costs import Costing, exact_times
from slimrank.select.joint._bound import bound_of
from slimrank.select.joint._fastest import fastest_choice
from slimrank.select.joint._make_table import joint_of
from slimrank.select.joint._prices import Hulls, Priced
from slimrank.select.joint._shapes import Shapes, shapes_of
from slimrank.select.joint._table import Joint, State, normalised, standing_cost, whole_cost
from slimrank.select.layers import _optimal
from slimrank.surgery import _matrix
from slimrank.survey import _anchors, _blocks, _estimate, _groups, _layers, _measure, _session
from slimrank.survey._anchors import Anchors, count_samples
from slimrank.survey._blocks import _damages_in_turn as damages_in_turn
from slimrank.survey._blocks import _drops_to_measure as blocks_to_drop
from slimrank.survey._blocks import blocks_alone, most_drops
from slimrank.survey._effort import EFFORT_ROWS
from slimrank.survey._estimate import Estimate, Speed
from slimrank.survey._threads import crowded_text

T = TypeVar("T")

# Around the section of exported files in pages of before.
EXPORTED_MARKS = OLD_MARKS

# --- what a study holds ---


def original_of(study: Study) -> nn.Module:
    """The private copy of the caller's model: the one that must not change, and that nobody may be given."""
    return session_of(study).original


def rough_divergence(rivals: Rivals, plan: Plan) -> float:
    """About the divergence of what a plan builds, as ``compress`` measures it."""
    return rivals._rough_divergence(plan)


def held_out_of(study: Study) -> tuple[int, ...]:
    """Indices of the samples that nothing is fitted to."""
    return tuple(session_of(study).feed.held_out)


def divergence_of(study: Study, model: nn.Module) -> float:
    """The held-out divergence of any model, as the study measures it: for models that no plan builds."""
    session = session_of(study)
    return _anchors.Anchors(session, 1).divergence_of(model)


# --- one more method ---


def add_method(monkeypatch: pytest.MonkeyPatch, row: MethodRow) -> None:
    """The method table has one more row.

    Patched: the table itself, which the functions of ``methods`` look up at each call.
    """
    monkeypatch.setattr(_table, "TABLE", {**_table.TABLE, row.name: row})


# --- Ctrl-C in the midst ---


def _interrupt_after(
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    function: str,
    calls: int,
    error: BaseException | None = None,
) -> None:
    called, original = count(), getattr(module, function)

    def interrupted(*args: object, **kwargs: object) -> object:
        if next(called) >= calls:
            raise KeyboardInterrupt if error is None else error
        return original(*args, **kwargs)

    monkeypatch.setattr(module, function, interrupted)


def interrupt_after_layers(
    monkeypatch: pytest.MonkeyPatch, n: int, error: BaseException | None = None
) -> None:
    """A study is interrupted once it has computed the curves of ``n`` layers.

    Patched: the function that computes the curves of one layer.
    """
    _interrupt_after(monkeypatch, _layers, "layer_curves", n, error)


def interrupt_after_groups(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """A study is interrupted once it has computed the curves of ``n`` groups of channels.

    Patched: the function that computes the curve of one group.
    """
    _interrupt_after(monkeypatch, _groups, "group_curve", n)


def interrupt_after_drops(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """A study is interrupted once it has built ``n`` models without some of their blocks.

    Patched: the call that builds such a model.
    """
    _interrupt_after(monkeypatch, _blocks, "apply_plan", n)


def interrupt_after_pairs(monkeypatch: pytest.MonkeyPatch, n: int) -> None:
    """An apply is interrupted once ``n`` layers have become pairs.

    Patched: the function that puts the modules of a pair where their layer was.
    """
    _interrupt_after(monkeypatch, _install, "fill_container", n)


def interrupt_after_fits(monkeypatch: pytest.MonkeyPatch, n: int, error: BaseException | None = None) -> None:
    """An apply is interrupted once ``n`` layers have been fitted to samples, as pairs or in one piece.

    Patched: the function that chooses the best fit of one layer.
    """
    _interrupt_after(monkeypatch, _fit_layer, "best_fit", n, error)


def slow_down_layers(monkeypatch: pytest.MonkeyPatch, pause: Callable[[], None]) -> None:
    """A study pauses before the curves of each layer, so that its process can be killed between two of them.

    Patched: the function that computes the curves of one layer.
    """
    original = _layers.layer_curves

    def slow(*args: object, **kwargs: object) -> object:
        pause()
        return original(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(_layers, "layer_curves", slow)


# --- errors in the midst, and what must not run ---


def forbid_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a study measures: one that is finished only reads its files.

    Patched: curves of layers, and the two passes over the data.
    """
    measuring = ((_layers, "layer_curves"), (_measure, "collect_gradients"), (_chunks, "collect_moments"))
    for module, function in measuring:
        monkeypatch.setattr(module, function, lambda *_a, **_k: pytest.fail("the study measures again"))


def forbid_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a model is copied, the first thing that studies and applies do.

    So a test sees that wrong options are refused before anything runs. Patched: all ways to copy.
    """
    for module, function in ((_replay, "copy_model"), (_session, "copy_model"), (_session, "quiet_copy")):
        monkeypatch.setattr(module, function, lambda *_a, **_k: pytest.fail("the model is copied"))


def forbid_masked_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test where a trial makes the masked model, which it needs not where the slimmed one raises.

    Patched: the function that sets the channels to zero.
    """
    monkeypatch.setattr(_compare, "mask", lambda *_: pytest.fail("the masked model is run"))


def fail_after_curves(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """A study fails while it uses its copy of the model: once the curves of the first layer are measured.

    Patched: the function that brings measured damages into the curves.
    """
    monkeypatch.setattr(_layers, "anchored_curves", _raising(error))


def fail_while_saving(
    monkeypatch: pytest.MonkeyPatch, step: Literal["writing", "moving"], error: BaseException
) -> None:
    """Saving a result fails: while a file is written, or when the directory is put where it belongs.

    Patched: the function of that step.
    """
    functions = {"writing": "write_bytes", "moving": "_move_into_place"}
    monkeypatch.setattr(_saved_model, functions[step], _raising(error))


def break_update(monkeypatch: pytest.MonkeyPatch, instead: Callable[..., None]) -> None:
    """Exchanges what changes manifest and report of a saved model."""
    monkeypatch.setattr(_result, "update_artifact", instead)


def change_format(monkeypatch: pytest.MonkeyPatch, name: str, **functions: object) -> Format:
    """Exchanges functions of a format's row.

    Args:
        monkeypatch: of the test.
        name: of the format.
        functions: by field of the row.

    Returns:
        The row before.
    """
    row = FORMATS[name]
    monkeypatch.setitem(_formats.FORMATS, name, replace(row, **functions))  # type: ignore[arg-type]
    return row


def _raising(error: BaseException) -> Callable[..., object]:
    def fail(*_args: object, **_kwargs: object) -> object:
        raise error

    return fail


# --- what is done, and what is done again ---


def _watch(monkeypatch: pytest.MonkeyPatch, owner: object, function: str, note: Callable[..., T]) -> list[T]:
    """What ``note`` makes of the arguments of each call, in a list that grows."""
    seen: list[T] = []
    original = getattr(owner, function)

    def watched(*args: object, **kwargs: object) -> object:
        seen.append(note(*args, **kwargs))
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, function, watched)
    return seen


def _name_of(item: object, *_args: object, **_kwargs: object) -> str:
    return str(item.name)  # type: ignore[attr-defined]


def watch_layer_curves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers whose curves a study computes from now on, in a list that grows.

    Patched: the function that computes the curves of one layer.
    """
    return _watch(monkeypatch, _layers, "layer_curves", _name_of)


def watch_live_targets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many layers' targets, each with large matrices, are alive whenever a layer of a study is done.

    Patched: the function that makes a target, and the one that gives freed memory back, called at that time.
    """
    weights: list[weakref.ref[Tensor]] = []
    alive: list[int] = []
    make = _layers.target_of

    def noted(*args: object) -> object:
        target = make(*args)  # type: ignore[arg-type]
        weights.append(weakref.ref(target.dense))
        return target

    monkeypatch.setattr(_layers, "target_of", noted)
    count_alive = lambda *_: alive.append(sum(weight() is not None for weight in weights))  # noqa: E731
    monkeypatch.setattr(_layers.Trimmer, "after", count_alive)
    return alive


def watch_group_curves(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the groups of channels whose curves a study computes from now on, in a list that grows.

    Patched: the function that computes the curve of one group.
    """
    return _watch(monkeypatch, _groups, "group_curve", _name_of)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """A model that a study builds without some of its blocks.

    Attributes:
        blocks: names of the blocks that go.
        n_fit: number of samples that the rest is fitted to.
        n_held_out: number of samples that the damage is measured on.
    """

    blocks: tuple[str, ...]
    n_fit: int
    n_held_out: int


def watch_drops(monkeypatch: pytest.MonkeyPatch) -> list[Drop]:
    """The models that a study builds from now on without some of their blocks, in a list that grows.

    Patched: the call that builds such a model.
    """

    def note(_model: nn.Module, plan: object, *, data: Data, **_options: object) -> Drop:
        feed = data.feed
        return Drop(blocks=plan.dropped, n_fit=len(feed.fit), n_held_out=len(feed.held_out))  # type: ignore[attr-defined]

    return _watch(monkeypatch, _blocks, "apply_plan", note)


def watch_fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that an apply fits to samples from now on, in a list that grows.

    Patched: the function that chooses the best fit of one layer.
    """
    return _watch(monkeypatch, _fit_layer, "best_fit", _name_of)


def watch_pair_fits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that an apply fits pairs for from now on, in a list that grows; a name per fit.

    Patched: the function that fits the factors of a pair.
    """
    return _watch(monkeypatch, _fit, "fit_factors", _name_of)


def watch_score_targets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the layers that measuring scores decomposes from now on, in a list that grows.

    Patched: the function that prepares a layer for its decompositions.
    """
    return _watch(monkeypatch, _score_trials, "target_of", _name_of)


def watch_decompositions(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The decompositions of kernels from now on, the costly part of a fit, by function, in a list that grows.

    Patched: both functions that decompose, for forms with and without a shared kernel.
    """
    calls: list[str] = []

    def note(function: str, *_args: object, **_kwargs: object) -> None:
        calls.append(function)

    for function in ("output_basis", "initial_first_factor"):
        _watch(monkeypatch, _pair, function, partial(note, function))
    return calls


def watch_epilogues(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """Arguments of each question for what follows the layers from now on; the answer is: nothing.

    Patched: the answer, which tells a fit which outputs a ReLU throws away and what shortcuts add.
    """
    calls: list[tuple[object, ...]] = []

    def find_nothing(*args: object) -> Mapping[str, object]:
        calls.append(args)
        return {}

    monkeypatch.setattr(_seen.Seen, "epilogues", find_nothing)
    return calls


def without_epilogues(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are fitted as if nothing followed them, to compare with fits that know what follows.

    Patched: the search for what follows the layers; it finds nothing.
    """
    watch_epilogues(monkeypatch)


def watch_trials(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, Sequence[int]]]:
    """The units kept in each slimmed model that is tried from now on, by group, in a list that grows.

    Patched: the method that compares a slimmed model with the masked one.
    """
    return _watch(monkeypatch, Comparison, "problem", lambda _bench, _channels, kept, **_options: kept)


# --- fewer samples, smaller limits ---


def few_anchor_macs(monkeypatch: pytest.MonkeyPatch, macs: float) -> None:
    """So few MACs for measured damages that held-out samples are shared out among the measurements.

    Patched: the limit, which tiny networks never reach.
    """
    monkeypatch.setattr(_anchors, "_ANCHOR_MACS", macs)


def few_block_macs(monkeypatch: pytest.MonkeyPatch, macs: float) -> None:
    """So few MACs for damages of blocks that a part of the samples serves.

    Patched: the limit, which tiny networks never reach.
    """
    monkeypatch.setattr(_blocks, "_BLOCK_MACS", macs)


def short_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search for the best plan keeps two partial choices at a time, so that it misses some.

    Patched: both limits of its work, which tiny networks never reach.
    """
    monkeypatch.setattr(_optimal, "_SEARCH_WORK", 0)
    monkeypatch.setattr(_optimal, "_MIN_PARTIALS", 2)


def remove_in_blocks(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Errors of a removal are computed for so many columns at a time.

    Patched: the number of columns, which small matrices never reach.
    """
    monkeypatch.setattr(_obs, "_ERROR_COLUMNS", columns)


def gather_steps(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Removals change an inverse matrix once so many columns have gone.

    Patched: the number of columns, which small matrices never reach.
    """
    monkeypatch.setattr(_obs, "_STEPS_AT_ONCE", columns)


def remove_in_batches(monkeypatch: pytest.MonkeyPatch, *, above: int, rounds: int) -> None:
    """Several units go at a time where a consumer has more columns than ``above``: ``rounds`` per halving.

    Patched: both numbers, which small matrices never reach.
    """
    monkeypatch.setattr(_obs, "_EXACT_COLUMNS", above)
    monkeypatch.setattr(_obs, "_ROUNDS_PER_HALVING", rounds)


def limit_onnx_files(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """One ONNX file holds so many bytes of weights.

    Patched: that limit, which is two gigabytes.
    """
    monkeypatch.setattr(_onnx, "_MAX_WEIGHT_BYTES", n_bytes)


def round_weights_above(monkeypatch: pytest.MonkeyPatch, numbers: int) -> None:
    """Larger weights are computed with in float32, as only huge ones are.

    Patched: the limit, which only layers too large for a test exceed.
    """
    monkeypatch.setattr(_matrix, "MAX_EXACT_NUMBERS", numbers)


def wide_moments_above(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Moments of more columns are kept in float32, as those of large layers are.

    Patched: that width, at which studies take long.
    """
    monkeypatch.setattr(_moments, "_NARROW", columns)


def fold_taps_from(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """Consumers of more columns are ordered by one column per unit, and the ridge is left out in float32.

    Patched: the limit, which only layers too large for a test exceed.
    """
    monkeypatch.setattr(_obs, "MAX_EXACT_COLUMNS", columns)


def errors_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of all ranks are found in float32, as those of wide layers are.

    Patched: the size of the equations from which on they are.
    """
    monkeypatch.setattr(_split_pair, "_WIDE_EQUATIONS", 0)


def leading_directions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs with a closed form are found by their leading directions, as those of few ranks of wide layers.

    Patched: the outputs from which on, and their share of these.
    """
    monkeypatch.setattr(_output_basis, "_WIDE_OUTPUTS", 0)
    monkeypatch.setattr(_output_basis, "_LEADING_SHARE", 1.0)


def wide_from(monkeypatch: pytest.MonkeyPatch, columns: int, *, counts: int | None = None) -> None:
    """Consumers of more columns than this are too wide to invert, as only huge layers are.

    Patched: that width and, with ``counts``, at how many numbers of removed units errors are computed.
    """
    monkeypatch.setattr(_obs, "_MAX_COLUMNS", columns)
    if counts is not None:
        monkeypatch.setattr(_obs, "_WIDE_COUNTS", counts)


# --- other values inside ---


def keep_diagonals_above(monkeypatch: pytest.MonkeyPatch, n_outputs: int) -> None:
    """Of layers with more outputs, second moments of gradients are diagonals, as for large vocabularies.

    Patched: the limit, which only layers too large for a test exceed.
    """
    monkeypatch.setattr(_gradients, "MAX_METRIC_WIDTH", n_outputs)


def replace_sampled_loss(monkeypatch: pytest.MonkeyPatch, loss: Callable[..., Tensor]) -> None:
    """Gradients are those of this loss, to compare with gradients worked out by hand.

    Patched: the loss of drawn labels, whose gradients are random.
    """
    monkeypatch.setattr(_gradients, "sampled_loss", loss)


def propose_first_factor(monkeypatch: pytest.MonkeyPatch, factor: Tensor) -> None:
    """Every step of a refinement proposes this first factor: no ordinary input makes one that loses.

    Patched: the least-squares step for the first factor.
    """
    monkeypatch.setattr(_split_pair, "improve_first", lambda *_: factor)


def forbid_moment_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments that are stored as rows stay rows.

    Patched: what makes a matrix of them, which only of layers too wide for a test takes too much memory.
    """

    def refuse(*_: object) -> Tensor:
        raise AssertionError("a matrix of moments was made")

    monkeypatch.setattr(Moments, "ridged", refuse)


def show_progress_on(monkeypatch: pytest.MonkeyPatch, stream: TextIO) -> None:
    """Progress bars are drawn on a stream as on a terminal 120 columns wide.

    Patched: the console, which draws no bars where stderr is no terminal.
    """
    monkeypatch.setattr(
        _progress, "Console", lambda **_: Console(file=stream, force_terminal=True, width=120)
    )


def watch_estimates(
    monkeypatch: pytest.MonkeyPatch, tell: Callable[[Estimate], object], *, sample: float, products: float
) -> None:
    """Hands out the estimates of studies, made for a given speed of model and machine.

    Patched: what measures the speed, and what makes an estimate of it.
    """
    original = _estimate.estimate_study

    def told(*args: object) -> Estimate:
        estimate = original(*args)  # type: ignore[arg-type]
        tell(estimate)
        return estimate

    monkeypatch.setattr(_estimate, "measure_speed", lambda _: Speed(sample=sample, products=products))
    monkeypatch.setattr(_estimate, "estimate_study", told)


def short_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo takes one batch of each kind and no rival plans: it tells the same in a tenth of the time.

    Patched: its data, and the options it compresses with.
    """
    demo = _demo_run
    for function in ("calibration_batches", "test_batches"):
        monkeypatch.setattr(demo, function, partial(_first_batch, getattr(demo, function)))
    monkeypatch.setattr(
        demo.sr, "compress", partial(demo.sr.compress, compete=False, methods=("weight_svd",))
    )


def _first_batch(batches: Callable[[], list[object]]) -> list[object]:
    return batches()[:1]


def time_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported files are timed for a few rounds only."""
    monkeypatch.setattr(_timing, "_SECONDS", 0.0)
    monkeypatch.setattr(_measure_script, "_SETTLING_SECONDS", 0.0)


def pretend_cpu(monkeypatch: pytest.MonkeyPatch, machine: str, *, has_vnni: bool) -> None:
    """This machine's processor is of such a kind, for files in int8."""
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(_cpu, "_has_vnni", lambda: has_vnni)


def limit_calibration(monkeypatch: pytest.MonkeyPatch, *, n_bytes: int) -> None:
    """Samples to calibrate with take so many bytes at most."""
    monkeypatch.setattr(_samples, "_MAX_BYTES", n_bytes)


def limit_alive(monkeypatch: pytest.MonkeyPatch, *, n_bytes: int) -> None:
    """Forwards that pause in ``apply`` hold so many bytes at one depth at most."""
    limits = replace(_alive_batches.SAMPLING, live_activations=n_bytes)
    monkeypatch.setattr(_alive_batches, "SAMPLING", limits)


def record_of(table: Latencies) -> LatencyRecord:
    """What was measured for a latency table."""
    return table._record


def invent_latencies(
    monkeypatch: pytest.MonkeyPatch,
    ratio_of: Callable[[nn.Module, nn.Module], float],
    *,
    spreads: Sequence[float] = (0.01,),
) -> None:
    """Models take a ratio of the time of the original, by a function of both; the original takes 10 ms.

    Ratios spread by one of the spreads each time, then by the last. Patched: what writes files for a runtime,
    and what times them.
    """
    told = iter(spreads)

    def compare(before: nn.Module, after: nn.Module, **_: object) -> TimeComparison:
        ratio, spread = ratio_of(before, after), next(told, spreads[-1])
        times = [Times(milliseconds=ms, spread=spread) for ms in (10.0, 10.0 * ratio)]
        return TimeComparison(before=times[0], after=times[1], ratio=ratio, spread=spread)

    def write(model: nn.Module, *_: object, batch: int, **__: object) -> OpenFile:
        # What is run is only handed on.
        return OpenFile(run=model, batch=batch)

    rows = {name: replace(row, open=write) for name, row in BACKENDS.items()}
    monkeypatch.setattr(_meet_latency, "BACKENDS", rows)
    monkeypatch.setattr(_meet_latency, "write_open", write)
    monkeypatch.setattr(_meet_latency, "compare_in_turns", compare)


def invent_backend(monkeypatch: pytest.MonkeyPatch, name: str, row: Backend) -> None:
    """One more runtime."""
    for module in (_backends, _measure_latency, _meet_latency):
        monkeypatch.setattr(module, "BACKENDS", {**BACKENDS, name: row})


def elsewhere(table: Latencies, machine: str, versions: Mapping[str, str] | None = None) -> Latencies:
    """A table as if it had been measured on another machine, or with other versions of packages."""
    conditions = table._record.conditions
    found = replace(conditions, machine=machine, versions={**conditions.versions, **(versions or {})})
    return replace(table, _record=replace(table._record, conditions=found))


def invent_tables(monkeypatch: pytest.MonkeyPatch, measure: Callable[..., object]) -> None:
    """``compress`` plans by these tables of times.

    Patched: what measures a table, which takes minutes.
    """
    monkeypatch.setattr(_compress, "measure_latency", measure)


def command_names() -> list[str]:
    """The commands of the program."""
    return cli.list_commands(click.Context(cli))


def command(name: str) -> click.Command:
    """One of them."""
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    return found


def told_help(name: str) -> str:
    """What the program's help says of a command, whole."""
    return _main._COMMANDS[name][1]


def refuse_runtimes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no original is opened in a runtime by ``meet_latency``."""

    def refuse(*_: object, **__: object) -> object:
        raise AssertionError("a runtime was opened")

    monkeypatch.setattr(_meet_latency, "timed_beside", refuse)


def interrupt_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes while a command's answer is laid out."""

    def interrupt(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(_command, "fitted_to", interrupt)


def measure_fewer_variants(patch: pytest.MonkeyPatch) -> None:
    """Latency tables of two variants and one with dropped blocks, each timed for an instant.

    Where only whole times are told there are twice as many.
    """
    for name, few in (("_FITTED", 2), ("_MIXED", 1), ("_WHOLE_FITTED", 4), ("_WHOLE_MIXED", 2)):
        patch.setattr(_measure_latency, name, few)
    patch.setattr(_measure_latency, "SECONDS", 0.05)
    patch.setattr(_elsewhere, "SECONDS", 0.05)
    patch.setattr(_measure_script, "_SETTLING_SECONDS", 0.0)


def watch_variants(patch: pytest.MonkeyPatch, stop_at: int | None = None) -> list[int]:
    """A list that grows by each variant that is timed; an interrupt comes before one of them."""
    timed: list[int] = []
    time = _measure_latency._timed

    def watched(*args: object) -> object:
        if len(timed) == stop_at:
            raise KeyboardInterrupt
        timed.append(len(timed))
        return time(*args)  # type: ignore[arg-type]

    patch.setattr(_measure_latency, "_timed", watched)
    return timed


def watch_live_views(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Directories that are shown in the browser from now on by ``serve=True``, in a list that grows."""
    return _watch(monkeypatch, live, "serve_from_start", lambda run_dir: run_dir)


def refuse_live_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on no port can be listened on by ``serve=True``."""

    def refuse(_: object) -> object:
        raise OptionError("no port")

    monkeypatch.setattr(live, "serve_from_start", refuse)


def emit_with(listener: Callable[[dict[str, object]], object], **values: float) -> None:
    """Lets a listener hear one event with such values."""
    Phases(shown=False, listeners=(listener,)).emit("test", **values)  # type: ignore[arg-type]
