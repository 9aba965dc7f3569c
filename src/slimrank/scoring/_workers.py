# SPDX-License-Identifier: Apache-2.0
"""Evaluations by the workers of joblib: processes of this machine, Ray, Dask."""

import functools
import hashlib
import importlib
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from slimrank._errors import OptionError
from slimrank.forward import outside_inference_mode
from slimrank.scoring._evaluate import AnyTrial, Evaluator, ScoreFn

# How often a worker looks whether its parent lives: it outlives it by at most this, at hardly any cost.
_WATCH_SECONDS = 1.0
_Results = Iterable[tuple[int, float]]


@dataclass(frozen=True, slots=True, eq=False)
class _Payload:
    """What a worker needs once.

    Attributes:
        data: pickled model and score function; uint8, which joblib hands over as a file.
        digest: of ``data``.
        max_bytes: of outputs of unchanged layers that one worker holds at most.
        threads: that torch uses, as in the calling process: results depend on it.
        parent: process that calls.
    """

    data: NDArray[np.uint8]
    digest: str
    max_bytes: int
    threads: int
    parent: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Payload) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


def count_workers(workers: int) -> int:
    """How many evaluations run at a time.

    Args:
        workers: asked for; 1 takes what an active ``joblib.parallel_config`` says.

    Returns:
        At least 1; 1 for this process alone.

    Raises:
        OptionError: joblib is not installed.
    """
    if workers == 1 and sys.modules.get("joblib") is None:
        return 1
    return int(_joblib().effective_n_jobs(None if workers == 1 else workers))


def evaluate_with_workers(
    model: nn.Module, score_fn: ScoreFn, trials: Iterable[AnyTrial], *, workers: int, max_bytes: int
) -> Generator[tuple[AnyTrial, float], None, None]:
    """Scores of trials, as they come in.

    Args:
        model: a private copy in eval mode; not changed.
        score_fn: of the caller.
        trials: taken as workers become free, one at a time, but not always in the same thread.
        workers: as in ``count_workers``.
        max_bytes: of outputs of unchanged layers that all workers together hold at most.

    Yields:
        A trial, and its score.

    Raises:
        OptionError: joblib is missing, or model or function cannot be sent to another process.
        ScoreError: the function fails, returns no finite number, or changes the model.
    """
    joblib = _joblib()
    n_workers = count_workers(workers)
    payload = _packed(model, score_fn, max_bytes // n_workers)
    pending: dict[int, AnyTrial] = {}
    failed: list[BaseException] = []

    def tasks() -> Iterator[object]:
        try:
            for number, trial in enumerate(trials):
                pending[number] = trial
                yield joblib.delayed(_evaluate)(payload, number, trial.on_cpu())
        except BaseException as error:
            # This may run in a thread of joblib, where an error would be lost.
            failed.append(error)

    backend, _ = joblib.parallel.get_active_backend()
    is_streaming = bool(backend.supports_return_generator)
    # One trial at a time: scores that wait for the rest of a batch are lost when the run is killed.
    parallel = joblib.Parallel(
        n_jobs=None if workers == 1 else workers,
        batch_size=1,
        return_as="generator_unordered" if is_streaming else "list",
    )
    # Workers are started by this call.
    with _interrupts_are_the_callers():
        results: _Results = parallel(tasks()) if is_streaming else _in_rounds(parallel, tasks(), n_workers)
    for number, score in results:
        yield pending.pop(number), score
    if failed:
        raise failed[0]


@contextmanager
def _interrupts_are_the_callers() -> Iterator[None]:
    """Processes that are started now leave Ctrl-C to this one, which ends them.

    A terminal sends it to all of them, and a Python that is just starting answers with a traceback.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_rounds(
    parallel: Callable[[Iterable[object]], _Results], tasks: Iterator[object], size: int
) -> Iterator[tuple[int, float]]:
    """Results of backends that give them all at once: as many at a time as there are workers."""
    while tasks_of_round := list(islice(tasks, size)):
        yield from parallel(tasks_of_round)


@outside_inference_mode
def _evaluate(payload: _Payload, number: int, trial: AnyTrial) -> tuple[int, float]:
    """One evaluation, in a worker."""
    _end_with(payload.parent)
    # Results depend on the number of threads in their last bits.
    if torch.get_num_threads() != payload.threads:
        torch.set_num_threads(payload.threads)
    try:
        return number, _evaluator_of(payload).score(trial)
    except BaseException:
        # The model may have been changed half-way.
        _evaluator_of.cache_clear()
        raise


@functools.lru_cache(maxsize=1)
def _end_with(parent: int) -> None:
    """Ends this worker soon after its parent, also where that is killed and cannot end its workers."""
    if os.getppid() != parent:
        # The worker is a thread of the caller, or runs on another machine: there is no parent to watch.
        return

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@functools.lru_cache(maxsize=1)
def _evaluator_of(payload: _Payload) -> Evaluator:
    """The evaluator of this worker: model and function are unpacked once."""
    model, score_fn = pickle.loads(payload.data.tobytes())
    return Evaluator(model, score_fn, max_bytes=payload.max_bytes)


def _packed(model: nn.Module, score_fn: ScoreFn, max_bytes: int) -> _Payload:
    cloudpickle = _cloudpickle()
    classes = {type(module).__module__ for module in model.modules()}
    names = {*classes, getattr(score_fn, "__module__", None), type(score_fn).__module__}
    with ExitStack() as stack:
        # By value: another process could not import a module that was loaded from a file by hand.
        for name in names:
            module = sys.modules.get(name or "")
            if module is not None and not _is_importable(module.__name__):
                cloudpickle.register_pickle_by_value(module)
                stack.callback(cloudpickle.unregister_pickle_by_value, module)
        try:
            data: bytes = cloudpickle.dumps((model, score_fn))
        except Exception as error:
            raise OptionError(
                f"score_fn or the model cannot be sent to another process ({type(error).__name__}: {error}); "
                "open files and connections within score_fn, or take workers=1"
            ) from error
    return _Payload(
        data=np.frombuffer(data, dtype=np.uint8),
        digest=hashlib.sha256(data).hexdigest(),
        max_bytes=max_bytes,
        threads=torch.get_num_threads(),
        parent=os.getpid(),
    )


def _is_importable(name: str) -> bool:
    """Whether another process finds a module by its name; not what was loaded from a file by hand."""
    if name == "__main__":
        # Always pickled by value.
        return True
    top = name.partition(".")[0]
    return top in sys.builtin_module_names or any(
        finder.find_spec(top, None) is not None for finder in sys.meta_path if hasattr(finder, "find_spec")
    )


def _cloudpickle() -> ModuleType:
    """The pickler of joblib, which older versions carry with them."""
    try:
        return importlib.import_module("cloudpickle")
    except ImportError:
        return importlib.import_module("joblib.externals.cloudpickle")


def _joblib() -> ModuleType:
    try:
        return importlib.import_module("joblib")
    except ImportError as error:
        raise OptionError(
            "workers above 1 need joblib, which is not installed; pip install slimrank[parallel], or take "
            "workers=1"
        ) from error
