# SPDX-License-Identifier: Apache-2.0
"""``memory=`` cuts work and changes no result; too little is refused; running out is told."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import seams
import slimrank as sr


def _model() -> nn.Module:
    """A stem and two blocks with shortcuts, so that there are layers, groups and blocks."""
    generator = torch.Generator().manual_seed(0)

    class Block(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.first, self.second = (
                nn.Conv2d(width, width, 3, padding=1),
                nn.Conv2d(width, width, 3, padding=1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.second(torch.relu(self.first(x))))

    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 8)]
    model = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), Block(48), Block(48), *head)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def _batches(size: int = 8) -> list[Tensor]:
    return list(torch.randn(40, 3, size, size, generator=torch.Generator().manual_seed(1)).split(10))


def _least(tell: Callable[[str], object]) -> int:
    """The least ``memory=`` that a call takes, from what its refusals say."""
    memory = "10MB"
    for _ in range(4):
        try:
            tell(memory)
        except sr.OptionError as error:
            found = re.search(r"needs about ([0-9.]+) MB", str(error))
            if found is None:
                raise
            # Told in two digits, so rounded up.
            memory = f"{float(found[1]) + 1} MB"
        else:
            return int(float(memory.removesuffix(" MB")) * 1e6)
    raise AssertionError(f"{memory} is still refused")


def _study(memory: int | str | None = None, **others: object) -> sr.Study:
    return sr.study(_model(), _batches(), memory=memory, progress=False, **others)  # type: ignore[arg-type]


def _numbers(study: sr.Study) -> list[tuple[object, ...]]:
    curves = [(curve.layer, curve.form, list(map(float, curve.damage))) for curve in study.curves]
    groups = [(curve.group, list(map(float, curve.damage))) for curve in study.group_curves]
    return [*curves, *groups, *((block.block, block.damage) for block in study.block_damages)]


def _weights(result: sr.Result) -> Mapping[str, Tensor]:
    return result.model.state_dict()


def _assert_same(result: sr.Result, other: sr.Result) -> None:
    weights, others = _weights(result), _weights(other)
    assert weights.keys() == others.keys()
    assert [name for name in weights if not torch.equal(weights[name], others[name])] == []
    assert result.divergence == other.divergence


@pytest.mark.slow
def test_the_least_memory_gives_the_same_bits_and_tells_what_it_costs() -> None:
    least = _least(_study)
    usual, small = _study(), _study(least)
    assert _numbers(small) == _numbers(usual)
    assert small.fingerprint == usual.fingerprint
    plan = usual.plan(macs=0.6)
    assert small.plan(macs=0.6) == plan
    _assert_same(small.apply(plan), usual.apply(plan))
    told = [note.text for note in small.notes if note.where == "memory"]
    assert len(told) == 1
    assert re.match(r"[0-9]+ passes over the samples for second moments instead of 1, to stay below", told[0])
    assert not [note for note in usual.notes if note.where == "memory"]
    # Told of the study as a whole, so a second one says the same.
    assert [note.text for note in _study(least).notes] == [note.text for note in small.notes]


@pytest.mark.slow
def test_apply_runs_batches_one_after_the_other_where_memory_is_short() -> None:
    plan = _study().plan(macs=0.6)
    # Many samples: all of them at once take more than a forward and a fit.
    batches = list(torch.randn(1024, 3, 8, 8, generator=torch.Generator().manual_seed(1)).split(128))

    def apply(memory: int | str | None) -> sr.Result:
        return sr.apply(_model(), plan, batches, memory=memory, progress=False, fisher=False)

    usual, small = apply(None), apply(_least(apply))
    _assert_same(small, usual)
    assert [note.text for note in small.notes if "one after the other, from the start" in note.text]
    assert not [note.text for note in usual.notes if "one after the other" in note.text]


@pytest.mark.slow
def test_a_study_goes_on_with_another_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    least = _least(_study)
    undisturbed = _study()
    seams.interrupt_after_layers(monkeypatch, 2, MemoryError())
    with pytest.raises(sr.OutOfMemoryError, match=r"out of memory: layer '2\.second'"):
        _study(run_dir=tmp_path)
    monkeypatch.undo()
    resumed = _study(least, run_dir=tmp_path)
    assert _numbers(resumed) == _numbers(undisturbed)
    loaded = sr.Study.load(tmp_path, model=_model(), memory=least, progress=False)
    plan = undisturbed.plan(macs=0.6)
    _assert_same(loaded.apply(plan), undisturbed.apply(plan))


@pytest.mark.slow
@pytest.mark.parametrize(
    "raised",
    [
        MemoryError("no more"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError(
            "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"
        ),
    ],
)
def test_running_out_is_told_and_what_was_measured_is_kept(
    raised: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.interrupt_after_layers(monkeypatch, 1, raised)
    with pytest.raises(MemoryError) as caught:
        _study(run_dir=tmp_path)
    text = str(caught.value)
    assert isinstance(caught.value, sr.SlimrankError)
    assert text.startswith(f"out of memory: layer '2.first': {type(raised).__name__}: ")
    assert f"what was measured is kept in {tmp_path}: the same call goes on from there" in text
    assert all(part in text for part in ("lower memory=", "samples", "batches", "skip="))
    assert caught.value.__cause__ is raised


def test_without_a_directory_the_error_says_what_would_have_kept_it(monkeypatch: pytest.MonkeyPatch) -> None:
    seams.interrupt_after_layers(monkeypatch, 2, MemoryError())
    with pytest.raises(sr.OutOfMemoryError, match="nothing is kept of this run; with run_dir= the next"):
        _study()


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    seams.interrupt_after_layers(monkeypatch, 1, RuntimeError("something else"))
    with pytest.raises(RuntimeError, match=r"^something else$"):
        _study()


@pytest.mark.slow
def test_running_out_in_apply_names_the_layer_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = _study(run_dir=tmp_path)
    plan = study.plan(macs=0.6)
    undisturbed = _study().apply(plan)
    names = list(seams.layer_tasks(plan))
    seams.interrupt_after_fits(monkeypatch, 1, MemoryError())
    with pytest.raises(
        sr.OutOfMemoryError, match=rf"out of memory: layer '{re.escape(names[1])}'.* is kept in"
    ):
        study.apply(plan)
    monkeypatch.undo()
    _assert_same(study.apply(plan), undisturbed)


def test_running_out_inside_the_model_names_the_phase() -> None:
    class Greedy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 2:
                raise MemoryError
            return super().forward(x)

    model = Greedy(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 4)).eval()
    with pytest.raises(sr.OutOfMemoryError, match="out of memory: phase 'capture'"):
        sr.study(model, _batches(), progress=False)


@pytest.mark.parametrize("memory", ["10MB", 10_000_000])
def test_too_little_memory_names_the_layer_and_what_it_needs(memory: int | str) -> None:
    model = nn.Sequential(nn.Linear(3, 900), nn.ReLU(), nn.Linear(900, 900), nn.Linear(900, 4)).eval()
    batches = [torch.randn(64, 3)]
    with pytest.raises(
        sr.OptionError,
        match=r"memory=10 MB is too little: layer '2' needs about 2[0-9]{2} MB beside the model "
        r"\(estimated\); raise memory=, leave it alone with skip=, or give fewer or smaller samples",
    ):
        sr.study(model, batches, memory=memory, progress=False)


def test_a_skipped_layer_needs_nothing() -> None:
    model = nn.Sequential(nn.Linear(3, 900), nn.ReLU(), nn.Linear(900, 900), nn.Linear(900, 4)).eval()
    with pytest.raises(sr.OptionError, match=r"layer '[03]' needs about 2[0-9]{2} MB"):
        sr.study(model, [torch.randn(64, 3)], skip=("2",), memory=10_000_000, progress=False)


@pytest.mark.parametrize("memory", [0, -5, True, float("nan"), "2XB", "much"])
def test_what_is_no_memory_is_refused_before_any_work(memory: object) -> None:
    def never(*_: object) -> Sequence[Tensor]:
        raise AssertionError("was read")

    for call in (
        lambda: sr.study(_model(), _batches(), inputs=never, memory=memory),  # type: ignore[arg-type]
        lambda: sr.compress(_model(), _batches(), inputs=never, macs=0.5, memory=memory),  # type: ignore[arg-type]
    ):
        with pytest.raises(sr.OptionError, match=r"memory=.*give a whole number of bytes above 0"):
            call()
