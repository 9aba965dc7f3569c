# SPDX-License-Identifier: Apache-2.0
"""How "auto" reads the outputs of trained networks of many kinds; ``make bench-auto`` tells what it costs."""

from collections.abc import Iterator

import pytest
import torch

import slimrank as sr
from benchmarks.kinds.kind import Kind
from benchmarks.kinds.table import KINDS
from slimrank.calibrate import Likelihood, read_likelihood, reference_outputs
from slimrank.forward import Batch, as_batch, take_samples

# As many as a study of 256 samples holds out.
_HELD_OUT = 52
# Kinds whose scores are too unsure for a few samples: now and then read as numbers, which does no harm.
_UNSURE = {"vit-classifier", "policy-value", "multi-label", "tabular-classes"}


def held_out(kind: Kind, start: int) -> list[Batch]:
    batches = [as_batch(batch) for batch in kind.batches()][start : start + 2]
    return [take_samples(batch, list(range(_HELD_OUT // 2))) for batch in batches]


def read(kind: Kind, start: int = 0) -> Likelihood:
    model, batches = kind.load(), held_out(kind, start)
    return read_likelihood(reference_outputs(model, batches, None), batches, "auto")


def wrong_in(kind: Kind, likelihood: Likelihood) -> Iterator[str]:
    """Outputs that are read neither right nor without harm."""
    for path, output in likelihood.outputs.items():
        if output.family != kind.right[path] and output.family not in kind.harmless.get(path, ()):
            yield f"{path}: {output.family} for {kind.right[path]}"


def test_there_are_kinds_of_every_family() -> None:
    families = [family for kind in KINDS.values() for family in kind.right.values()]
    assert len(KINDS) >= 60
    assert all(families.count(family) >= 15 for family in ("categorical", "bernoulli", "gaussian"))


@pytest.mark.parametrize("name", KINDS)
def test_outputs_are_read_right_or_without_harm(name: str) -> None:
    kind = KINDS[name]
    likelihood = read(kind)
    assert likelihood.outputs.keys() == kind.right.keys()
    assert not list(wrong_in(kind, likelihood))
    told = " ".join(likelihood.reasons)
    assert all(output.family in told for output in likelihood.outputs.values())
    # Beside how they are read, outputs that are always largest at one place are told of.
    reasons = [reason for reason in likelihood.reasons if "is sure of class" not in reason]
    assert all("if that is wrong, pass e.g. likelihood=" in reason for reason in reasons)


@pytest.mark.parametrize("name", [name for name in KINDS if name not in _UNSURE])
def test_other_samples_are_read_alike(name: str) -> None:
    families = [
        {path: output.family for path, output in read(KINDS[name], start).outputs.items()} for start in (0, 4)
    ]
    assert families[0] == families[1]


@pytest.mark.slow
def test_numbers_are_never_taken_for_classes() -> None:
    """The loss that nobody notices: an image network lost 9 dB by it."""
    numbers = [kind for kind in KINDS.values() if set(kind.right.values()) == {"gaussian"}]
    assert len(numbers) >= 20
    for kind in numbers:
        assert {output.family for output in read(kind, 6).outputs.values()} == {"gaussian"}, kind.name


@pytest.mark.parametrize("name", ["yolo-maps", "yolo-layout", "fcos"])
def test_maps_of_one_head_share_one_reading(name: str) -> None:
    outputs = read(KINDS[name]).outputs
    heads: dict[str, set[tuple[str, int]]] = {}
    for path, output in outputs.items():
        heads.setdefault(path.rpartition(".")[0], set()).add((output.family, output.dim))
    assert all(len(found) == 1 for found in heads.values())


def test_classes_lie_where_they_lie() -> None:
    dims = {name: read(KINDS[name]).outputs[""].dim for name in ("segmentation", "channels-last")}
    assert dims == {"segmentation": 1, "channels-last": -1}
    dims = {name: read(KINDS[name]).outputs[""].dim for name in ("signal-segmentation", "text-recogniser")}
    assert dims == {"signal-segmentation": 1, "text-recogniser": -1}


@pytest.mark.slow
def test_sequences_are_scaled_by_their_positions() -> None:
    kind = KINDS["text-recogniser"]
    study = sr.study(kind.load(), kind.batches()[:4], progress=False)
    result = study.apply(study.plan(macs=0.5))
    assert result.agreement is not None
    assert result.agreement[""].positions == 20
    assert result.agreement[""].elements == (20,)
    # Some nats over all positions, and nearly all of the text is as it was.
    assert result.agreement[""].top1 > 0.9
    assert result.agreement.lost < 0.1
    assert not any(note.is_warning for note in result.notes)


def test_probabilities_of_yes_are_read_as_such() -> None:
    output = read(KINDS["pitch"]).outputs[""]
    assert (output.family, output.is_probability, output.positions) == ("bernoulli", True, 360)


@pytest.mark.slow
def test_auto_gives_what_the_right_reading_gives() -> None:
    kind = KINDS["super-resolution"]
    found = []
    for likelihood in ("auto", "gaussian"):
        study = sr.study(kind.load(), kind.batches()[:2], likelihood=likelihood, progress=False)  # type: ignore[arg-type]
        plan = study.plan(macs=kind.macs)
        found.append((plan.settings, plan.groups, plan.damage))
    assert found[0] == found[1]


@pytest.mark.slow
def test_kinds_train_the_same_twice() -> None:
    kind = KINDS["tabular-classes"]
    trained = kind.train().state_dict()
    assert all(torch.equal(tensor, trained[key]) for key, tensor in kind.load().state_dict().items())
