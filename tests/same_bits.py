# SPDX-License-Identifier: Apache-2.0
"""Whether two checkouts do the same, bit for bit: numbers, texts and files of the whole public road.

    python tests/same_bits.py against REV             # this checkout beside a commit
    python tests/same_bits.py record OUT.json         # the slimrank that PYTHONPATH names
    python tests/same_bits.py compare A.json B.json   # exit code 1 where an item differs

Only public names are used, so that one script runs on old and new sources. Values are told without the names
of classes and modules, which may move. Left out, because two runs of one checkout differ in it: wall times,
folders, the version, and the order in which safetensors writes the metadata of a file.

No test: pytest does not collect it. It serves while files move, and goes when that is done.
"""

import argparse
import contextlib
import csv
import dataclasses
import difflib
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import json
import logging
import math
import os
import pickle
import platform
import random
import re
import runpy
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import slimrank as sr

_HERE = Path(__file__).resolve().parent
_ROOT = _HERE.parent
# In this order: the last one imports the one before it, by its bare name.
_NETS = ("integration/nets.py", "integration/zoo_nets.py", "integration/pruning_nets.py")
_FACTORS = ("weight_svd", "spatial_svd")
_PRUNING = ("channel_pruning",)
_SHOWN_NUMBERS = 64
_NORMS = ".channels.norms["


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- values as text: one fact a line, no names of classes or modules ---


def _lines(value: object, path: str = "") -> Iterator[str]:
    """A value as text, exact: floats as their shortest text that reads back the same, large arrays by digest.

    Raises:
        TypeError: something that this file does not know how to tell; nothing is left out silently.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if not field.name.startswith("_")]
        for name in names:
            # Wall times: what was timed is the same every time, how long it took is not.
            inner = _untimed(getattr(value, name)) if name == "seconds" else getattr(value, name)
            yield from _lines(inner, f"{path}.{name}")
    elif isinstance(value, Mapping):
        yield from _inner(path, [(f"[{_scalar(key)}]", item) for key, item in value.items()], "{}")
    elif isinstance(value, list | tuple):
        if value and all(_is_scalar(item) for item in value):
            yield f"{path}: [{', '.join(_scalar(item) for item in value)}]"
        else:
            yield from _inner(path, [(f"[{index}]", item) for index, item in enumerate(value)], "[]")
    elif isinstance(value, set | frozenset):
        yield f"{path}: set {sorted(_scalar(item) for item in value)}"
    elif isinstance(value, Tensor):
        shown = _shown(value.flatten().tolist()) if value.numel() <= _SHOWN_NUMBERS else ""
        kind = f"{value.dtype} {list(value.shape)} grad={value.requires_grad}"
        yield f"{path}: {kind} {_digest(_tensor_bytes(value))}{shown}"
    elif isinstance(value, np.ndarray):
        shown = _shown(value.flatten().tolist()) if value.size <= _SHOWN_NUMBERS else ""
        kind = f"{value.dtype} {list(value.shape)} array"
        yield f"{path}: {kind} {_digest(np.ascontiguousarray(value).tobytes())}{shown}"
    else:
        yield f"{path}: {_scalar(value)}"


def _untimed(seconds: object) -> object:
    return list(seconds) if isinstance(seconds, Mapping) else None


def _inner(path: str, parts: Sequence[tuple[str, object]], empty: str) -> Iterator[str]:
    if not parts:
        yield f"{path}: {empty}"
    for name, item in parts:
        yield from _lines(item, path + name)


def _shown(numbers: Sequence[object]) -> str:
    return f" [{', '.join(map(repr, numbers))}]"


def _is_scalar(value: object) -> bool:
    return value is None or isinstance(value, bool | int | float | str | bytes | np.generic | torch.dtype)


def _scalar(value: object) -> str:
    if not _is_scalar(value):
        raise TypeError(
            f"{type(value).__module__}.{type(value).__qualname__} cannot be told; teach _lines it"
        )
    return f"{value.dtype} {value.item()!r}" if isinstance(value, np.generic) else repr(value)


def _tensor_bytes(tensor: Tensor) -> bytes:
    data = tensor.detach().cpu().contiguous()
    return data.flatten().view(torch.uint8).numpy().tobytes() if data.numel() else b""


def _told(value: object) -> str:
    return "\n".join(_lines(value)) + "\n"


def _module_text(model: nn.Module) -> str:
    """Structure, modes and gradients of a model."""
    modes = [
        f"{name}: {type(module).__name__} training={module.training}" for name, module in _modules(model)
    ]
    grads = [f"{name}: requires_grad={p.requires_grad}" for name, p in model.named_parameters()]
    return "\n".join((repr(model), *modes, *grads)) + "\n"


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return model.named_modules(remove_duplicate=False)


# --- files as text ---


_TIMES = re.compile(r"(Time: |<dt>Time</dt><dd>).*? in all", flags=re.DOTALL)
# By phase in study.json and in what the command line says, of an epoch in a run of training.
_SECONDS = re.compile(r'"seconds": (\[.*?\n \]|\{.*?\}|[-+.e\d]+)', flags=re.DOTALL)
_NUMBER = re.compile(r"-?\d+\.?\d*(e[-+]?\d+)?(?=,?\n|$)")
_VERSION = re.compile(r'^ "slimrank": ".*"', flags=re.MULTILINE)
_WEIGHTS_DIGEST = re.compile(r'"weights_sha256": "([0-9a-f]{64})"')


def _file_text(file: Path) -> str:
    """What a file holds, without what two runs of one checkout differ in."""
    if file.suffix == ".safetensors":
        return _told(_safetensors(file))
    text = file.read_bytes().decode()
    if file.suffix == ".json":
        text = _VERSION.sub(' "slimrank": "<version>"', text)
        text = _WEIGHTS_DIGEST.sub(partial(_weights_digest, file), text)
    return text


def _weights_digest(file: Path, found: re.Match[str]) -> str:
    """The digest of a saved model is as random as the order of the metadata in it."""
    beside = file.with_name("model.safetensors")
    is_right = beside.is_file() and _digest(beside.read_bytes()) == found[1]
    return f'"weights_sha256": "<{"right" if is_right else "wrong"}>"'


def _safetensors(file: Path) -> object:
    """Metadata by name; tensors in the order of the file, each by digest; and how the header is set."""
    data = file.read_bytes()
    length = int.from_bytes(data[:8], "little")
    try:
        header: dict[str, dict[str, object]] = json.loads(data[8 : 8 + length])
    except ValueError:
        # What safetensors 0.8 makes of no tensors and no metadata.
        return data
    body = data[8 + length :]
    metadata = header.pop("__metadata__", None)
    tensors = {
        name: (*facts.values(), _digest(body[slice(*facts["data_offsets"])]))  # type: ignore[misc]
        for name, facts in header.items()
    }
    return {
        "length": (length, len(data)),
        "metadata": None if metadata is None else dict(sorted(metadata.items())),
        "tensors": tensors,
    }


# --- what is recorded of one net ---


class Record:
    """Items of one net: a text under each name.

    Args:
        folder: of files that are written on the way; its path is left out of every text.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.items: dict[str, str] = {}

    def text(self, item: str, text: str) -> None:
        if item in self.items:
            raise ValueError(f"{item} is recorded twice; give each item a name of its own")
        text = _TIMES.sub(lambda found: f"{found[1]}<seconds> in all", text)
        text = _SECONDS.sub(lambda found: _NUMBER.sub("<seconds>", found[0]), text)
        self.items[item] = text.replace(str(self.folder), "<folder>").replace(str(_HERE), "<tests>")

    def value(self, item: str, value: object) -> None:
        self.text(item, _told(value))

    def files(self, item: str, folder: Path) -> None:
        """Every file under a folder, hidden ones too."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        self.value(f"{item}: files", [path.relative_to(folder).as_posix() for path in files])
        for file in files:
            self.text(f"{item}: {file.relative_to(folder).as_posix()}", _file_text(file))

    def model(self, item: str, model: nn.Module, batch: object) -> None:
        self.text(f"{item}: modules", _module_text(model))
        self.value(f"{item}: state", model.state_dict())
        with torch.no_grad():
            self.value(f"{item}: outputs", _run(model, batch))

    def plan(self, item: str, plan: sr.Plan) -> None:
        file = self.folder / "plan.json"
        plan.save(file)
        self.text(f"{item}: file", _file_text(file))
        names = [field.name for field in dataclasses.fields(plan) if field.name != "steps"]
        names += ["after", "start", "settings", "groups", "dropped"]
        self.value(f"{item}: facts", {name: getattr(plan, name) for name in names})
        self.text(f"{item}: text", f"{plan!r}\nread back alike: {sr.Plan.load(file) == plan}\n")

    def study(self, item: str, study: sr.Study) -> None:
        for index, curve in enumerate(study.curves):
            self.value(f"{item}: curve {index:03d} {curve.layer} {curve.method} {curve.form}", curve)
        for index, curve in enumerate(study.group_curves):
            self.value(f"{item}: group {index:03d} {curve.group}", curve)
        self.value(f"{item}: blocks", study.block_damages)
        self.value(f"{item}: layers", study.layers)
        # Batch norms are kept by the name of their layer, in no order.
        lines = list(_lines(study.structure))
        norms = sorted(line for line in lines if line.startswith(_NORMS))
        rest = [line for line in lines if not line.startswith(_NORMS)]
        self.text(f"{item}: structure", "\n".join((*rest, *norms)))
        self.value(f"{item}: gradients", study.grams)
        self.value(f"{item}: notes", study.notes)
        self.value(f"{item}: phases", list(study.seconds))
        self.value(f"{item}: fingerprint", study.fingerprint)
        facts = ("before", "has_bias", "methods", "unit")
        self.value(f"{item}: facts", {name: getattr(study, name) for name in facts})
        self.text(f"{item}: summary", f"{study!r}\n{study.summary()}\n{study.groups()}")
        study.report(self.folder / "study.html")
        self.text(f"{item}: report", _file_text(self.folder / "study.html"))
        if study.previous is not None:
            self.plan(f"{item}: previous", study.previous)

    def result(self, item: str, result: sr.Result, batch: object) -> sr.Result:
        """A result, and the same with every wall time one second, which is given back."""
        names = [field.name for field in dataclasses.fields(result)]
        names = [name for name in names if name not in ("model", "plan", "seconds")]
        self.value(f"{item}: facts", {name: getattr(result, name) for name in names})
        self.value(f"{item}: phases", list(result.seconds))
        self.model(item, result.model, batch)
        self.plan(f"{item}: plan", result.plan)
        fixed = result.with_notes((), dict.fromkeys(result.seconds, 1.0))
        self.text(f"{item}: summary", f"{fixed!r}\n{fixed.summary()}")
        return fixed

    def saved(self, item: str, result: sr.Result, fresh: nn.Module, batch: object) -> None:
        """Files of a saved result, and the model that is read from them."""
        folder = self.folder / "saved" / str(len(self.items))
        result.save(folder)
        self.files(f"{item}: saved", folder)
        self.model(f"{item}: loaded", sr.load(folder, model=fresh), batch)

    def raised(self, item: str, call: Callable[[], object]) -> None:
        """The error that a call ends in; of whatever kind, so that one that moved hides no other."""
        try:
            answer = call()
        except Exception as error:
            self.text(item, _error_text(error))
        else:
            self.text(item, f"no error, but a {type(answer).__name__}\n")


def _error_text(error: BaseException) -> str:
    kinds = [kind.__name__ for kind in type(error).__mro__]
    cause = error.__cause__
    return f"{kinds}\n{error}\ncause: {None if cause is None else type(cause).__name__}\n"


def _run(model: nn.Module, batch: object) -> object:
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple) else model(batch)


# --- the road of every net ---


@dataclasses.dataclass(frozen=True, kw_only=True)
class Net:
    """A network with its data and what is asked of it.

    Attributes:
        build: makes it, weights from a seed.
        batches: its inputs.
        options: of its study.
        macs: two budgets.
    """

    build: Callable[[], nn.Module]
    batches: Sequence[object]
    options: Mapping[str, object] = dataclasses.field(default_factory=dict)
    macs: tuple[float, float] = (0.8, 0.6)


def _by_hand(study: sr.Study) -> dict[str, object]:
    """Settings as a person types them: two pairs, the last group, and a block where there is one."""
    blocks = [damage.block for damage in study.block_damages][:1]
    first = {curve.layer: curve for curve in reversed(study.curves)}
    free = [curve for curve in first.values() if not curve.layer.startswith(tuple(f"{b}." for b in blocks))]
    settings: dict[str, object] = dict.fromkeys(blocks, "drop")
    for number, curve in enumerate(free[:2]):
        # From the back: layers near the output are seldom too small for a pair.
        how: object = 0.5 if number else {"rank": int(curve.ranks[len(curve.ranks) // 2]), "form": curve.form}
        settings[curve.layer] = (curve.method, how)
    groups = [c.group for c in study.group_curves if c.group not in settings]
    groups = [name for name in groups if not name.startswith(tuple(f"{block}." for block in blocks))]
    settings.update({name: ("channel_pruning", 0.75) for name in groups[-1:]})
    return settings


def _plans(study: sr.Study, net: Net) -> Iterator[tuple[str, Callable[[], sr.Plan]]]:
    first, second = net.macs
    yield "optimal", partial(study.plan, macs=first)
    yield "smaller", partial(study.plan, macs=second)
    yield "two budgets", partial(study.plan, params=first, bytes=first, multiple_of=2)
    yield "pairs", partial(study.plan, macs=first, methods=_FACTORS)
    yield "channels", partial(study.plan, macs=first, methods=_PRUNING)
    yield "uniform", partial(study.plan, macs=first, select="uniform")
    yield "greedy", partial(study.plan, macs=first, select="greedy")
    yield "by hand", lambda: sr.Plan.manual(study, _by_hand(study))


def _road(net: Net, record: Record) -> None:
    """Studied, planned, applied, saved, loaded, replayed."""
    model, batch, run_dir = net.build(), net.batches[0], record.folder / "run"
    study = sr.study(model, net.batches, run_dir=run_dir, progress=False, **net.options)
    record.study("study", study)
    plans: dict[str, sr.Plan] = {}
    for name, make in _plans(study, net):
        try:
            plans[name] = make()
        except sr.SlimrankError as error:
            record.text(f"plan {name}: refused", _error_text(error))
        else:
            record.plan(f"plan {name}", plans[name])
    for name in ("smaller", "pairs", "channels", "by hand"):
        if name in plans:
            fixed = record.result(f"apply {name}", study.apply(plans[name]), batch)
            if name in ("smaller", "by hand"):
                record.saved(f"apply {name}", fixed, net.build(), batch)
    chosen = plans.get("smaller") or plans["optimal"]
    seen: list[str] = []
    hooked = study.apply(chosen, sequential=False, on_layer=lambda _model, name: seen.append(name))
    record.value("apply of its own: hook", seen)
    record.result("apply of its own", hooked, batch)
    record.files("run_dir", run_dir)
    record.result("from weights", sr.apply(model, chosen, progress=False), batch)
    fit = {name: value for name, value in net.options.items() if name in ("draws", "outputs", "likelihood")}
    record.result("replayed", sr.apply(model, chosen, net.batches, progress=False, **fit), batch)
    study.save(record.folder / "kept")
    record.files("kept", record.folder / "kept")
    outputs = {name: value for name, value in net.options.items() if name == "outputs" and callable(value)}
    again = sr.Study.load(record.folder / "kept", model=model, progress=False, **outputs)
    record.study("study read back", again)
    record.result("apply read back", again.apply(chosen), batch)
    record.value("model afterwards", model.state_dict())


# --- the rest of the public face, each on one net ---


def _score_of(model: nn.Module, batches: Sequence[Tensor]) -> Callable[[nn.Module], float]:
    """Cross-entropy against what the original says."""
    with torch.no_grad():
        wanted = [model(x).argmax(1) for x in batches]

    def loss(other: nn.Module) -> float:
        with torch.no_grad():
            parts = zip(batches, wanted, strict=True)
            return sum(float(functional.cross_entropy(other(x), y)) for x, y in parts) / len(wanted)

    return loss


def _scores(record: Record, nets: ModuleType, _pruning: ModuleType) -> None:
    model, batches = nets.cnn(), nets.noise(1, 8, 8)
    study = sr.study(model, batches, draws=1, progress=False)
    loss = _score_of(model, batches)
    files = record.folder / "scores"
    files.mkdir()
    options = {"lower_is_better": True, "progress": False, "path": files / "scores.json"}
    part = sr.measure_scores(study, loss, candidates=4, layers=("st*", "fc"), **options)
    record.value("first part", part)
    table = sr.measure_scores(study, loss, candidates=4, prefix_cache=0, **options)
    record.value("table", table)
    record.text("summary", f"{table!r}\n{table.summary()}")
    table.report(files / "scores.html")
    file = record.folder / "aimet.pkl"
    ratios = {"conv": {Decimal("0.3"): 0.5, Decimal("0.6"): 0.75}, "last": {Decimal("0.4"): 0.25}}
    file.write_bytes(pickle.dumps(ratios, protocol=2))
    foreign = sr.Scores.from_aimet(file, study, method="spatial_svd", baseline=0.875)
    record.value("from AIMET", foreign)
    foreign.save(files / "foreign.json")
    record.value("read back", sr.Scores.load(files / "foreign.json"))
    record.files("files", files)
    treatments = {"plain": {}, "monotonic": {"monotonic": True}, "interpolated": {"interpolate": True}}
    for select in ("greedy", "optimal", "uniform"):
        for name, treatment in treatments.items():
            plan = study.plan(macs=0.7, select=select, scores=table, **treatment)
            record.plan(f"plan {select} {name}", plan)
    record.plan("plan of AIMET's table", study.plan(macs=0.9, select="greedy", scores=foreign))
    greedy = study.plan(macs=0.6, select="greedy", scores=table, multiple_of=2)
    fixed = record.result("apply", study.apply(greedy), batches[0])
    record.saved("apply", fixed, nets.cnn(), batches[0])


def _search(record: Record, nets: ModuleType, pruning: ModuleType) -> None:
    model, batches = nets.cnn(), nets.noise(1, 8, 8)
    study = sr.study(model, batches, draws=1, progress=False)
    loss = _score_of(model, batches)
    found = {
        "smallest": partial(sr.smallest, study, max_drop=0.002, tolerance=0.05),
        "smallest by score": partial(
            sr.smallest,
            study,
            max_drop=0.02,
            score_fn=loss,
            lower_is_better=True,
            metric="params",
            tolerance=0.05,
            methods=_FACTORS,
        ),
        "split": partial(sr.search_split, study, macs=0.5, splits=(0.7,)),
        "split by score": partial(
            sr.search_split,
            study,
            params=0.6,
            splits=(0.8,),
            methods=("weight_svd", "spatial_svd"),
            score_fn=loss,
            lower_is_better=True,
            tune=lambda part: part,
        ),
    }
    for name, search in found.items():
        fixed = record.result(name, search(), batches[0])
        record.saved(name, fixed, nets.cnn(), batches[0])
    maps, run_dir = pruning.batches("residual"), record.folder / "run"
    best = sr.compress(pruning.build("residual"), maps, macs=0.6, draws=1, run_dir=run_dir, progress=False)
    record.result("compress", best, maps[0])
    record.files("compress: run_dir", run_dir)
    seen: list[str] = []
    alone = sr.compress(
        pruning.build("plain"),
        maps,
        params=0.8,
        bytes=0.7,
        compete=False,
        multiple_of={"stem": 4, "*": 2},
        skip=("fc",),
        on_layer=lambda _model, layer: seen.append(layer),
        progress=False,
    )
    record.result("compress alone", alone, maps[0])
    record.value("compress alone: hook", seen)


def _two_steps(record: Record, _nets: ModuleType, pruning: ModuleType) -> None:
    model, batches = pruning.build("plain"), pruning.batches("plain")
    study = sr.study(model, batches, draws=1, progress=False)
    first = study.apply(study.plan(macs=0.75, methods=_PRUNING))
    second = sr.study(first, batches, draws=1, run_dir=record.folder / "run", progress=False)
    record.study("second study", second)
    plan = second.plan(macs=0.5, relative_to="original")
    record.plan("plan", plan)
    record.plan("plan of the model", second.plan(macs=0.8))
    record.plan("first step", plan.up_to(1))
    fixed = record.result("apply", second.apply(plan), batches[0])
    record.saved("apply", fixed, pruning.build("plain", seed=3), batches[0])
    record.result("replayed", sr.apply(model, plan, batches, progress=False), batches[0])
    record.result("from weights", sr.apply(model, plan, progress=False), batches[0])
    record.result("smallest", sr.smallest(second, max_drop=0.1, tolerance=0.1), batches[0])
    again = sr.Study.load(record.folder / "run", model=first.model, progress=False)
    record.result("read back", again.apply(plan), batches[0])
    record.files("run_dir", record.folder / "run")
    pair = next(iter(plan.settings), "fc")
    changed = plan.replace(pair, ("weight_svd", {"rank": 2}))
    record.plan("changed", changed)
    record.text("difference", f"{plan.diff(changed)}\n{plan.diff(plan.up_to(1))}\n{plan.diff(plan)}\n")


def _stoppable(base: type[nn.Module]) -> type[nn.Module]:
    """The same network, whose forward is interrupted as soon as something has happened."""

    class Stoppable(base):  # type: ignore[misc,valid-type]
        has_happened: Callable[[], bool] | None = None

        def forward(self, *inputs: object) -> object:
            if Stoppable.has_happened is not None and Stoppable.has_happened():
                raise KeyboardInterrupt
            return super().forward(*inputs)

    return Stoppable


def _resumed(record: Record, _nets: ModuleType, pruning: ModuleType) -> None:
    """Interrupted by the network itself, as Ctrl-C would, at several places; then gone on with."""
    kind, batches, run_dir = _stoppable(pruning.Residual), pruning.batches("residual"), record.folder / "run"
    model = sys.modules["zoo_nets"].settle(kind(), 0).eval()

    def study() -> sr.Study:
        return sr.study(model, batches, draws=2, run_dir=run_dir, progress=False)

    def interrupted(item: str, call: Callable[[], object], pattern: str, count: int) -> None:
        kind.has_happened = lambda: len(list(run_dir.rglob(pattern))) >= count
        try:
            call()
        except KeyboardInterrupt:
            record.files(f"interrupted {item}", run_dir)
        else:
            raise AssertionError(f"{item}: it was not interrupted; let the network stop elsewhere")
        finally:
            kind.has_happened = None

    interrupted("with gradients", study, "gradients*", 1)
    interrupted("after one layer", study, "curves-*", 1)
    interrupted("after three layers", study, "curves-*", 3)
    interrupted("after a group", study, "group-*", 1)
    interrupted("after a block", study, "block*", 1)
    done = study()
    record.study("study", done)
    plan = done.plan(macs=0.5)
    interrupted("apply", lambda: done.apply(plan), "apply/*/*", 2)
    record.result("apply", done.apply(plan), batches[0])
    record.files("run_dir", run_dir)


def _options(record: Record, nets: ModuleType, pruning: ModuleType) -> None:
    """Options of a study that no other net takes."""
    cnn, images = nets.cnn(), nets.noise(1, 8, 8)
    plain, maps = pruning.build("plain"), pruning.batches("plain")
    half, halves = (
        pruning.build("transformer").bfloat16(),
        [x.bfloat16() for x in pruning.batches("transformer")],
    )
    trained = pruning.build("depthwise").train()
    trained.stem.weight.requires_grad_(False)
    wide = nets.settle(nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 3)).double(), 1)
    few = [x.double() for x in nets.noise(6, n=1, size=4)]
    studies = {
        "without data": (cnn, images, {"data_free": True}),
        "without data, channels": (plain, maps, {"data_free": True, "methods": _PRUNING}),
        "magnitude": (plain, maps, {"channel_order": "magnitude", "draws": 1, "methods": _PRUNING}),
        "random": (plain, maps, {"channel_order": "random", "draws": 1, "methods": _PRUNING, "seed": 3}),
        "inputs only": (cnn, images, {"fisher": False}),
        "bernoulli": (cnn, images, {"likelihood": "bernoulli", "draws": 2}),
        "gaussian": (cnn, images, {"likelihood": "gaussian", "draws": 2, "holdout": 0.4}),
        "skip": (pruning.build("residual"), pruning.batches("residual"), {"skip": ("layer1.*",), "draws": 1}),
        "one method": (cnn, images, {"methods": ("spatial_svd",), "inputs": lambda x: (x,)}),
        "half precision": (half, halves, {"draws": 1}),
        "train mode": (trained, pruning.batches("depthwise"), {"draws": 1}),
        "double, few samples": (wide, few, {"draws": 1}),
        "picked": (nets.cnn(), images, {"outputs": lambda y: y[:, :4], "draws": 1}),
    }
    for name, (model, batches, options) in studies.items():
        study = sr.study(model, batches, progress=False, run_dir=record.folder / name, **options)
        record.study(name, study)
        plan = study.plan(macs=0.75, multiple_of=2)
        record.plan(f"{name}: plan", plan)
        fixed = record.result(f"{name}: apply", study.apply(plan), batches[0])
        record.saved(f"{name}: apply", fixed, model, batches[0])
        record.files(f"{name}: run_dir", record.folder / name)
        given = {key: value for key, value in options.items() if key in ("inputs", "outputs")}
        try:
            again = sr.Study.load(record.folder / name, model=model, progress=False, **given)
        except sr.SlimrankError as error:
            record.text(f"{name}: not read back", _error_text(error))
        else:
            record.result(f"{name}: read back", again.apply(plan), batches[0])


def _recover(record: Record, nets: ModuleType, _pruning: ModuleType) -> None:
    teacher, images = nets.cnn(), nets.noise(1, 8, 8, n=6)
    study = sr.study(teacher, images[:3], methods=_FACTORS, draws=1, progress=False)
    result = study.apply(study.plan(macs=0.5))
    with torch.no_grad():
        labelled = [(x, teacher(x).argmax(1)) for x in images]
    epochs: list[object] = []
    common = {"lr": 3e-4, "progress": False, "on_epoch": epochs.append}
    trained = {
        "finetune": partial(sr.finetune, result.model, labelled, nn.CrossEntropyLoss(), epochs=3),
        "finetune, norms": partial(
            sr.finetune,
            result.model,
            labelled[:4],
            functional.cross_entropy,
            holdout=labelled[4:],
            norms="reestimated",
            schedule="constant",
            optimizer=torch.optim.SGD,
        ),
        "distill": partial(sr.distill, result.model, teacher, images, epochs=2, features=["conv"]),
        "distill, warm": partial(
            sr.distill,
            result.model,
            teacher,
            images,
            norms="reestimated",
            temperature=2.0,
            likelihood="categorical",
        ),
    }
    for name, train in trained.items():
        model = train(run_dir=record.folder / name, **common)
        record.model(name, model, images[0])
        record.files(f"{name}: run_dir", record.folder / name)
        fixed = record.result(f"{name}: result", result.with_model(model), images[0])
        record.saved(f"{name}: result", fixed, nets.cnn(), images[0])
    record.value("epochs", epochs)


def _errors(record: Record, nets: ModuleType, pruning: ModuleType) -> None:
    """What people are told who ask for what cannot be."""
    model, batches, folder = nets.cnn(), nets.noise(1, 8, 8), record.folder
    other = nets.cnn()
    other.fc = nn.Linear(24, 11)
    study = sr.study(model, batches, draws=1, run_dir=folder / "run", progress=False)
    blocks = sr.study(pruning.build("residual"), pruning.batches("residual"), draws=1, progress=False)
    plan, tied = study.plan(macs=0.7), nets.settle(nets.TiedWeights())
    result = study.apply(plan)
    result.save(folder / "saved")
    plan.save(folder / "plan.json")
    text = (folder / "plan.json").read_text()
    written = {"cut": text[:90], "no plan": "[]", "version": text.replace('"format": 1', '"format": 9')}
    for name, content in written.items():
        (folder / f"{name}.json").write_text(content)
    (folder / "broken").mkdir()
    (folder / "broken" / "study.json").write_text("{}")
    bare = sr.Study.load(folder / "run")
    nan = [batches[0].index_fill(0, torch.tensor([1]), math.nan)]
    run = partial(sr.study, progress=False)
    table = sr.measure_scores(study, lambda _model: 1.0, candidates=2, layers=("fc",), progress=False)
    calls: dict[str, Callable[[], object]] = {
        "bare tensor": partial(run, model, batches[0]),
        "no batches": partial(run, model, []),
        "an iterator": partial(run, model, iter(batches)),
        "nan": partial(run, model, nan),
        "no module": partial(run, 3, batches),
        "other shape": partial(run, model, nets.noise(2, 8, 8)),
        "unknown method": partial(run, model, batches, methods=("weight_svt",)),
        "method as text": partial(run, model, batches, methods="weight_svd"),
        "skip": partial(run, model, batches, skip=("cnov",)),
        "draws": partial(run, model, batches, draws=0),
        "holdout": partial(run, model, batches, holdout=1.0),
        "channel order": partial(run, model, batches, channel_order="obz"),
        "outputs": partial(run, model, batches, outputs="logits"),
        "run_dir": partial(run, other, batches, run_dir=folder / "run"),
        "one layer": partial(run, nn.Linear(24, 24), nets.noise(24)),
        "nothing to compress": partial(run, nn.Sequential(nn.ReLU(), nn.Flatten()), nets.noise(24)),
        "no gradient": partial(run, nets.FrozenBackbone(), nets.noise(24), outputs=lambda y: y.detach()),
        "no budget": study.plan,
        "budget above one": partial(study.plan, macs=1.5),
        "out of reach": partial(study.plan, macs=0.001),
        "out of reach with blocks": partial(blocks.plan, params=0.001, skip=("fc",)),
        "out of reach, pairs": partial(study.plan, macs=0.01, methods=_FACTORS, multiple_of=8),
        "selector": partial(study.plan, macs=0.5, select="best"),
        "skip in a plan": partial(study.plan, macs=0.5, skip=("fcc",)),
        "multiple": partial(study.plan, macs=0.5, multiple_of={"fcc": 2}),
        "no scores": partial(study.plan, macs=0.5, monotonic=True),
        "scores of another study": partial(blocks.plan, macs=0.5, scores=table),
        "relative to": partial(study.plan, macs=0.5, relative_to="other"),
        "unknown layer": partial(sr.Plan.manual, study, {"cnov": ("weight_svd", 0.5)}),
        "rank": partial(sr.Plan.manual, study, {"fc": ("weight_svd", {"rank": 99})}),
        "ratio": partial(sr.Plan.manual, study, {"fc": ("weight_svd", 1.5)}),
        "form": partial(sr.Plan.manual, study, {"conv": ("weight_svd", {"rank": 2, "form": "v_h"})}),
        "method of a layer": partial(sr.Plan.manual, study, {"fc": ("spatial_svd", 0.5)}),
        "channels": partial(sr.Plan.manual, study, {"conv": ("channel_pruning", {"channels_kept": [99]})}),
        "drop": partial(sr.Plan.manual, blocks, {"stem": "drop"}),
        "inside a dropped block": partial(
            sr.Plan.manual, blocks, {"layer1": "drop", "layer1.conv1": ("weight_svd", 0.5)}
        ),
        "kind of setting": partial(sr.Plan.manual, study, {"fc": 3}),
        "replace": partial(plan.replace, "fcc", None),
        "difference": partial(plan.diff, 3),
        "metric": partial(plan.keep_ratio, "flops"),
        "missing plan": partial(sr.Plan.load, folder / "none.json"),
        **{f"plan file {name}": partial(sr.Plan.load, folder / f"{name}.json") for name in written},
        "another model": partial(sr.apply, other, plan, progress=False),
        "another kind of model": partial(sr.apply, nets.mlp(), plan, progress=False),
        "plan of another study": partial(blocks.apply, plan),
        "hook": partial(study.apply, plan, on_layer=3),
        "load": partial(sr.load, folder / "none", model=model),
        "load another": partial(sr.load, folder / "saved", model=nets.mlp()),
        "not empty": partial(result.save, folder / "saved"),
        "no model": partial(sr.load, folder / "saved", model=3),
        "broken study": partial(sr.Study.load, folder / "broken"),
        "missing study": partial(sr.Study.load, folder / "none"),
        "study of another model": partial(sr.Study.load, folder / "run", model=other, progress=False),
        "without a model": partial(bare.apply, plan),
        "smallest without a model": partial(sr.smallest, bare),
        "nothing holds": partial(
            sr.smallest, study, max_drop=0, score_fn=_falling(), tolerance=0.5, methods=_FACTORS
        ),
        "split": partial(sr.search_split, study, macs=0.5, splits=(0.4,)),
        "split out of reach": partial(sr.search_split, study, macs=0.001),
        "score fails": partial(sr.measure_scores, study, lambda _model: 1 / 0, progress=False),
        "score is nan": partial(sr.measure_scores, study, lambda _model: math.nan, progress=False),
        "candidates": partial(sr.measure_scores, study, lambda _model: 1.0, candidates=1),
        "layers": partial(sr.measure_scores, study, lambda _model: 1.0, layers=("cnov",)),
        "missing table": partial(sr.Scores.load, folder / "none.json"),
        "other tensors": partial(result.with_model, nets.cnn()),
        "loss": partial(sr.finetune, model, batches, nn.CrossEntropyLoss),
        "no pairs": partial(sr.finetune, model, batches, nn.CrossEntropyLoss(), progress=False),
        "epochs": partial(sr.finetune, model, batches, nn.CrossEntropyLoss(), epochs=0),
        "teacher": partial(sr.distill, model, 3, batches),
        "features": partial(sr.distill, model, model, batches, features=["cnov"]),
        "half": partial(sr.distill, nets.cnn().half(), model, batches),
        "compress without a budget": partial(sr.compress, tied, nets.tokens()),
        "result and plan": partial(run, result, batches, previous=plan),
    }
    for name, call in calls.items():
        record.raised(name, call)


def _falling() -> Callable[[nn.Module], float]:
    """A score that only the first model has."""
    scores = iter([1.0])
    return lambda _model: next(scores, 0.0)


_CLI_CODE = """
import torch, nets, pruning_nets
def build():
    return nets.cnn()
def batches():
    return nets.noise(1, 8, 8)
def residual():
    return pruning_nets.build("residual")
def maps():
    return pruning_nets.batches("residual")
def score(model):
    with torch.no_grad():
        return -float(model(nets.noise(1, 8, 8)[0]).square().mean())
"""
_CLI = (
    "--help",
    *(f"{command} --help" for command in ("demo", "study", "plan", "score", "apply", "compress", "report")),
    "study cli_net.py:build cli_net.py:batches --out run --groups --quiet --draws 1",
    "study cli_net.py:residual cli_net.py:maps --out blocks --groups --quiet --draws 1 --json",
    "plan run --macs 0.6 --out plan.json",
    "plan run --macs 0.6 --select greedy --methods weight_svd,spatial_svd --json --diff plan.json",
    "plan blocks --params 0.5 --multiple-of stem=4 --multiple-of *=2",
    "plan run --manual manual.csv --base plan.json --out manual.json",
    "plan run --macs 0.001",
    "plan run --macs 1.5",
    "plan none --macs 0.5",
    "apply cli_net.py:build plan.json --study run --out small --quiet",
    "apply cli_net.py:build manual.json --out bare --quiet",
    "apply cli_net.py:build plan.json --out small --quiet",
    "score cli_net.py:build cli_net.py:score --study run --out scores.json --candidates 3 --quiet",
    "plan run --macs 0.7 --select greedy --scores scores.json",
    "compress cli_net.py:build cli_net.py:batches --out both --macs 0.6 --no-compete --quiet --draws 1",
    "report run --out study.html",
    "report small --out study.html",
    "study cli_net.py:nothing cli_net.py:batches --out x",
)


def _command_line(record: Record, _nets: ModuleType, _pruning: ModuleType) -> None:
    (record.folder / "cli_net.py").write_text(_CLI_CODE)
    with (record.folder / "manual.csv").open("w", newline="") as file:
        rows = [
            ("layer", "method", "ratio"),
            ("fc", "weight_svd", "0.5"),
            ("stem", "channel_pruning", "0.75"),
        ]
        csv.writer(file).writerows(rows)
    with contextlib.chdir(record.folder):
        for command in _CLI:
            record.text(f"slimrank {command}", _answer(command.split()))
    for name in ("small", "bare", "both", "run", "blocks"):
        record.files(name, record.folder / name)
    for name in ("plan.json", "manual.json", "scores.json", "study.html"):
        record.text(name, _file_text(record.folder / name))


def _answer(arguments: Sequence[str]) -> str:
    """What the command line says, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    kept, code = sys.argv, None
    sys.argv = ["slimrank", *arguments]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            runpy.run_module("slimrank", run_name="__main__")
    except SystemExit as stop:
        code = stop.code
    finally:
        sys.argv = kept
    return f"exit code {code}\n--- stdout\n{out.getvalue()}--- stderr\n{err.getvalue()}"


def _face(record: Record, _nets: ModuleType, _pruning: ModuleType) -> None:
    """Names, parameters with their defaults, and what they say of themselves."""
    record.value("names", sorted(sr.__all__))
    for name in sorted(sr.__all__):
        value = getattr(sr, name)
        if inspect.isclass(value):
            record.text(name, _class_text(value))
        elif callable(value):
            record.text(name, _function_text(value))
        elif name != "__version__":
            record.value(name, value)


def _class_text(kind: type) -> str:
    bases = [base.__name__ for base in kind.__mro__]
    parts = [f"{kind.__name__} {bases}", _doc(kind)]
    if dataclasses.is_dataclass(kind):
        parts += [f"field {field.name}" for field in dataclasses.fields(kind) if field.name[0] != "_"]
    for name, member in sorted(vars(kind).items()):
        if name[0] == "_" and name != "__init__":
            continue
        raw = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if isinstance(raw, property):
            parts.append(f"property {name}\n{_doc(raw)}")
        elif inspect.isfunction(raw):
            parts.append(f"{name}{_function_text(raw)}")
    return "\n".join(parts) + "\n"


def _function_text(function: Callable[..., object]) -> str:
    parameters = inspect.signature(function).parameters.values()
    shown = [f"{p.kind.name} {p.name} = {_default(p.default)}" for p in parameters]
    return "\n".join(("", *shown, _doc(function))) + "\n"


def _default(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "-"
    if isinstance(value, dict | tuple | list) and not value:
        return repr(value)
    return repr(value) if _is_scalar(value) or isinstance(value, tuple) else "<made>"


def _doc(value: object) -> str:
    """Its text, without examples: they name rooms."""
    return (inspect.getdoc(value) or "").partition("\nExample:")[0]


# --- which nets ---


class _Masked(nn.Module):
    """Tokens with a mask, by keyword, as text models take them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(50, 24), nn.Linear(24, 48), nn.Linear(48, 20)

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.mix(self.embed(input_ids)).relu() * attention_mask[..., None]
        return {"logits": self.head(x), "pooled": x.mean(1)}


def _masked(nets: ModuleType) -> list[dict[str, Tensor]]:
    batches = []
    for ids in nets.tokens():
        mask = torch.ones_like(ids)
        mask[::2, 4:] = 0
        batches.append({"input_ids": ids.masked_fill(mask == 0, 0), "attention_mask": mask})
    return batches


def _nets(nets: ModuleType, zoo: ModuleType, pruning: ModuleType) -> Iterator[tuple[str, Net]]:
    def settled(kind: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
        return lambda: nets.settle(kind()).eval()

    rows, noise = nets.noise(24), nets.noise
    yield "cnn", Net(build=nets.cnn, batches=noise(1, 8, 8))
    for name in pruning.NAMES:
        build = partial(pruning.build, name)
        yield name, Net(build=build, batches=pruning.batches(name), options={"draws": 2})
    yield "convolutions", Net(build=settled(nets.Convs), batches=noise(3, 8, 8))
    yield "other dimensions", Net(build=settled(nets.OtherDims), batches=noise(4, 16))
    unet, edsr = zoo.Unet, zoo.SuperResolution
    few = {"draws": 1}
    yield (
        "unet",
        Net(build=lambda: zoo.settle(unet(8).eval()), batches=noise(3, 16, 16, n=2, size=4), options=few),
    )
    yield (
        "super-resolution",
        Net(build=lambda: zoo.settle(edsr(8, 2).eval()), batches=noise(3, 8, 8, n=2, size=4), options=few),
    )
    yield (
        "conformer",
        Net(
            build=lambda: zoo.settle(zoo.Conformer(16, 1, 8, 10).eval()),
            batches=noise(12, 8, n=2, size=4),
            options=few,
        ),
    )
    yield (
        "yolo",
        Net(
            build=lambda: zoo.settle(zoo.Detector(8).eval()),
            batches=noise(3, 32, 32, n=2, size=4),
            options={"draws": 1, "methods": _PRUNING},
        ),
    )
    yield "encoder", Net(build=settled(nets.Encoder), batches=noise(6, 24))
    yield "masked tokens", Net(build=settled(_Masked), batches=_masked(nets))
    yield "tied weights", Net(build=settled(nets.TiedWeights), batches=nets.tokens())
    yield "tied bias", Net(build=settled(nets.TiedBias), batches=rows)
    yield "called twice", Net(build=settled(nets.Twice), batches=rows)
    yield "two names", Net(build=settled(nets.TwoNames), batches=rows)
    yield "dict of outputs", Net(build=settled(nets.DictOutput), batches=rows)
    yield "tuple of outputs", Net(build=settled(nets.TupleOutput), batches=rows, options={"outputs": 0})
    yield "dataclass of outputs", Net(build=settled(nets.DataclassOutput), batches=rows)
    both = list(zip(rows, noise(16, seed=1), strict=True))
    yield "two inputs", Net(build=settled(nets.TwoInputs), batches=both)
    named = [{"x": x} for x in rows]
    yield "keywords", Net(build=settled(nets.KeywordLayers), batches=named)
    yield "control flow", Net(build=settled(nets.Control), batches=rows)
    yield "mixture", Net(build=settled(nets.Mixture), batches=rows)
    yield "reads a weight", Net(build=settled(nets.ReadsWeight), batches=rows)
    yield "parameters of its own", Net(build=settled(nets.OwnParameter), batches=noise(6, 24))
    yield "mixed types", Net(build=settled(nets.MixedTypes), batches=rows)
    yield "weight norm", Net(build=settled(nets.Normed), batches=rows, macs=(0.9, 0.8))
    yield "recurrent", Net(build=settled(nets.Recurrent), batches=noise(5, 24), macs=(0.98, 0.96))


_OTHERS: Mapping[str, Callable[[Record, ModuleType, ModuleType], None]] = {
    "scores": _scores,
    "search": _search,
    "two steps": _two_steps,
    "resumed": _resumed,
    "options": _options,
    "recover": _recover,
    "errors": _errors,
    "command line": _command_line,
    "face": _face,
}


# --- recording ---


class _Log(logging.Handler):
    """What the library logs."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.name} {record.levelname} {record.getMessage()}")


def _modules_of_nets() -> tuple[ModuleType, ...]:
    """The networks of this checkout's tests, importable by their bare names."""
    found = []
    for path in _NETS:
        file = _HERE / path
        spec = importlib.util.spec_from_file_location(file.stem, file)
        if spec is None or spec.loader is None:
            raise FileNotFoundError(f"{file} cannot be imported")
        module = importlib.util.module_from_spec(spec)
        sys.modules[file.stem] = module
        spec.loader.exec_module(module)
        found.append(module)
    return tuple(found)


def _recorded(run: Callable[[Record], None]) -> dict[str, str]:
    """Items of one net; what it warns of, logs, draws from global generators, and where it crashed."""
    for seed in (torch.manual_seed, np.random.seed, random.seed):
        seed(0)
    log, told = _Log(), logging.getLogger("slimrank")
    told.addHandler(log)
    with (
        tempfile.TemporaryDirectory(prefix="same-bits-") as folder,
        warnings.catch_warnings(record=True) as seen,
    ):
        warnings.simplefilter("always")
        record = Record(Path(folder).resolve())
        try:
            run(record)
        except Exception:
            # The other nets still tell something.
            record.text("crashed", traceback.format_exc())
    told.removeHandler(log)
    record.text("log", "\n".join(log.lines))
    record.text("warnings", "\n".join(sorted({f"{w.category.__name__} {w.message}" for w in seen})))
    chance = (torch.get_rng_state(), np.random.get_state()[1], np.array(random.getstate()[1]))
    record.value("global generators", chance)
    return record.items


def record(out: Path, texts_dir: Path | None, only: Sequence[str]) -> int:
    """Records every net, or some, in a file; exit code 1 where one crashed."""
    torch.set_num_threads(1)
    # The command line wraps its help at the width of the terminal.
    os.environ["COLUMNS"] = "80"
    start, used = time.perf_counter(), time.process_time()
    nets, zoo, pruning = _modules_of_nets()
    runs: dict[str, Callable[[Record], None]] = {
        name: partial(_road, net) for name, net in _nets(nets, zoo, pruning)
    }
    runs |= {name: partial(_called, run, nets, pruning) for name, run in _OTHERS.items()}
    unknown = sorted(set(only) - set(runs))
    if unknown:
        raise SystemExit(f"no such net: {', '.join(unknown)}; known are {', '.join(runs)}")
    items: dict[str, dict[str, str]] = {}
    texts: dict[str, str] = {}
    crashed = []
    for name, run in runs.items():
        if only and name not in only:
            continue
        before = time.process_time()
        found = _recorded(run)
        items[name] = {item: _digest(text.encode()) for item, text in found.items()}
        texts |= {items[name][item]: text for item, text in found.items()}
        _say(f"{name:<22} {len(found):>5} items {time.process_time() - before:6.1f} s of CPU")
        if "crashed" in found:
            crashed.append(name)
            _say(found["crashed"])
    source = Path(sr.__file__ or "").resolve().parent
    about = {"source": str(source), "tools": _tools()}
    content = json.dumps({"about": about, "items": items, "texts": texts}, indent=0)
    draft = out.with_name(f".{out.name}.{os.getpid()}")
    draft.write_text(content)
    draft.replace(out)
    if texts_dir is not None:
        _write_texts(texts_dir, items, texts)
    count = sum(map(len, items.values()))
    taken = f"{time.perf_counter() - start:.0f} s ({time.process_time() - used:.0f} s of CPU)"
    _say(f"{count} items of {len(items)} nets from {source} in {taken}: {out}")
    if crashed:
        _say(f"crashed: {', '.join(crashed)}")
    return 1 if crashed else 0


def _called(
    run: Callable[[Record, ModuleType, ModuleType], None],
    nets: ModuleType,
    pruning: ModuleType,
    found: Record,
) -> None:
    run(found, nets, pruning)


def _write_texts(folder: Path, items: Mapping[str, Mapping[str, str]], texts: Mapping[str, str]) -> None:
    """Every text as a file, to be read or compared by other means."""
    for net, own in items.items():
        for item, digest in own.items():
            file = folder / net / f"{item.replace('/', '_')}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(texts[digest])


def _tools() -> dict[str, str]:
    names = ("torch", "numpy", "scipy", "safetensors", "click", "rich")
    versions = {name: importlib.metadata.version(name) for name in names}
    return {"python": platform.python_version(), "processor": platform.processor(), **versions}


# --- comparing ---


def compare(first: Path, second: Path, only: Sequence[str], *, n_diffs: int, n_lines: int) -> int:
    """Prints every item that differs, the first few with their lines; exit code 1 where there is one."""
    one, other = (json.loads(path.read_text()) for path in (first, second))
    if one["about"]["tools"] != other["about"]["tools"]:
        _say(f"other tools: {one['about']['tools']} and {other['about']['tools']}")
    differing: dict[str, int] = {}
    count = 0
    for net, item in _names(one["items"], other["items"]):
        if only and net not in only:
            continue
        count += 1
        mine, theirs = (side["items"].get(net, {}).get(item) for side in (one, other))
        if mine == theirs:
            continue
        differing[net] = differing.get(net, 0) + 1
        words = "only in the second" if mine is None else "only in the first" if theirs is None else "differs"
        _say(f"{net}: {item}: {words}")
        if mine is not None and theirs is not None and sum(differing.values()) <= n_diffs:
            _say(_difference(one["texts"][mine], other["texts"][theirs], n_lines))
    if not count:
        _say("nothing to compare")
        return 2
    if not differing:
        _say(f"the same: {count} items")
        return 0
    parts = ", ".join(f"{net} {number}" for net, number in differing.items())
    _say(f"{sum(differing.values())} of {count} items differ: {parts}")
    return 1


def _names(*sides: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """Net and item, as first met."""
    for net in dict.fromkeys(net for side in sides for net in side):
        for item in dict.fromkeys(item for side in sides for item in side.get(net, {})):
            yield net, item


def _difference(one: str, other: str, n_lines: int) -> str:
    lines = list(difflib.unified_diff(one.splitlines(), other.splitlines(), "first", "second", "", "", 1, ""))
    shown = [line if len(line) <= 300 else f"{line[:300]}..." for line in lines[:n_lines]]
    rest = [f"({len(lines) - n_lines} lines more)"] if len(lines) > n_lines else []
    return "\n".join(f"    {line}" for line in (*shown, *rest))


# --- against a commit ---


def against(revision: str, cache: Path, only: Sequence[str], *, n_diffs: int, n_lines: int) -> int:
    """Records a commit and this checkout with this file and these nets, and compares them."""
    commit = _git("rev-parse", "--verify", f"{revision}^{{commit}}")
    cache.mkdir(parents=True, exist_ok=True)
    known = cache / f"{commit[:12]}-{_key()}.json"
    if only and not known.is_file():
        known = known.with_name(f"{known.stem}-{_digest(repr(sorted(only)).encode())[:6]}.json")
    draft = known.with_suffix(f".{os.getpid()}")
    if known.is_file():
        _say(f"{commit[:12]} was recorded before: {known}")
    else:
        with tempfile.TemporaryDirectory(prefix="same-bits-") as folder:
            tree = Path(folder).resolve() / "tree"
            _git("worktree", "add", "--quiet", "--detach", str(tree), commit)
            try:
                code = _record_of(tree / "src", draft, only)
            finally:
                _git("worktree", "remove", "--force", str(tree))
        if code:
            draft.unlink(missing_ok=True)
            _say(f"{commit[:12]} cannot be recorded; see above")
            return 2
        draft.replace(known)
    with tempfile.TemporaryDirectory(prefix="same-bits-") as folder:
        here = Path(folder) / "here.json"
        crashed = _record_of(_ROOT / "src", here, only)
        if not here.is_file():
            return 2
        _say("")
        return max(compare(known, here, only, n_diffs=n_diffs, n_lines=n_lines), crashed)


def _record_of(source: Path, out: Path, only: Sequence[str]) -> int:
    """Records the sources of a folder in a process of its own."""
    fixed = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(_HERE / "same_bits.py"), "record", str(out)]
    command += [part for name in only for part in ("--only", name)]
    code = subprocess.run(
        command, env={**os.environ, **fixed, "PYTHONPATH": str(source)}, check=False
    ).returncode
    if out.is_file():
        found = Path(json.loads(out.read_text())["about"]["source"])
        if found != source / "slimrank":
            out.unlink()
            raise SystemExit(f"{found} was imported, not {source / 'slimrank'}; look at PYTHONPATH")
    return code


def _key() -> str:
    """Of what a recording depends on besides the commit: this file, the nets, the tools."""
    files = [Path(__file__).resolve(), *(_HERE / path for path in _NETS)]
    told = [_digest(file.read_bytes()) for file in files]
    return _digest(json.dumps([told, _tools()]).encode())[:12]


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="record the slimrank that is imported")
    recording.add_argument("out", type=Path)
    recording.add_argument("--texts", type=Path, metavar="DIR", help="also write every text as a file")
    comparing = commands.add_parser("compare", help="compare two recordings")
    comparing.add_argument("first", type=Path)
    comparing.add_argument("second", type=Path)
    beside = commands.add_parser("against", help="record a commit and this checkout, and compare them")
    beside.add_argument("revision")
    default = Path(tempfile.gettempdir()) / "slimrank-same-bits"
    beside.add_argument("--cache", type=Path, default=default, help=f"recorded commits (default {default})")
    for command in (recording, comparing, beside):
        command.add_argument("--only", action="append", default=[], metavar="NET", help="these nets alone")
    for command in (comparing, beside):
        command.add_argument("--diffs", type=int, default=20, help="items whose lines are shown (default 20)")
        command.add_argument("--lines", type=int, default=30, help="lines shown of each (default 30)")
    asked = parser.parse_args(arguments)
    if asked.command == "record":
        return record(asked.out, asked.texts, asked.only)
    if asked.command == "compare":
        return compare(asked.first, asked.second, asked.only, n_diffs=asked.diffs, n_lines=asked.lines)
    return against(asked.revision, asked.cache, asked.only, n_diffs=asked.diffs, n_lines=asked.lines)


if __name__ == "__main__":
    sys.exit(main())
