# SPDX-License-Identifier: Apache-2.0
"""What a result says of how far its outputs agree, and what it keeps of that in files."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import slimrank as sr
from slimrank.records import Agreement, Note, OutputAgreement

_LABEL = OutputAgreement(
    family="categorical", shape=(10,), positions=1, divergence=0.0123, lost=0.01, top1=0.98906
)
_BOX = OutputAgreement(
    family="gaussian",
    shape=(4,),
    positions=1,
    divergence=0.02,
    lost=0.02,
    cosine=0.9981,
    relative_error=0.064,
    by_element=(0.01, 0.02, 0.03, 0.12),
    elements=(4,),
)
_LOST = "little left"


@pytest.fixture(scope="module")
def study() -> sr.Study:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)).eval()
    batches = [torch.randn(6, 12, generator=generator)] * 3
    return sr.study(model, batches, likelihood="gaussian", methods=("weight_svd",), progress=False)


@pytest.fixture(scope="module")
def result(study: sr.Study) -> sr.Result:
    return study.apply(study.plan(macs=0.7))


@pytest.fixture(scope="module")
def little_left(study: sr.Study) -> sr.Result:
    rank_1 = ("weight_svd", {"rank": 1})
    return study.apply(sr.Plan.manual(study, {"0": rank_1, "2": rank_1}))


def _warnings(result: sr.Result) -> list[Note]:
    return [note for note in result.notes if note.is_warning]


def _break(model: nn.Module, name: str) -> None:
    """Breaks the last layer, once it is there."""
    if name == "2":
        with torch.no_grad():
            for parameter in model.get_submodule(name).parameters():
                parameter.fill_(math.nan)


def test_repr_tells_the_agreement(result: sr.Result) -> None:
    told = replace(
        result, divergence=0.0123, unit="nats per sample", agreement=Agreement({"": _LABEL}, 0.0123)
    )
    assert repr(told).endswith("; divergence 0.0123 nats per sample, agreement 98.9 % top-1)")
    told = replace(result, divergence=0.02, unit="u", agreement=Agreement({"": _BOX}, 0.02))
    assert repr(told).endswith("; divergence 0.02 u, cosine 0.998, relative error 0.064)")
    assert repr(replace(told, divergence=None, agreement=None)).endswith("; divergence not measured)")


def test_summary_report_and_manifest_tell_the_agreement(result: sr.Result, tmp_path: Path) -> None:
    assert result.agreement is not None
    assert f"Held-out agreement: cosine {result.agreement.cosine:.4f}, relative error" in result.summary()
    result.save(tmp_path / "model")
    assert "<dt>Held-out agreement</dt>" in (tmp_path / "model" / "report.html").read_text()
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert manifest["agreement"]["cosine"] == result.agreement.cosine
    assert manifest["agreement"]["outputs"][""]["relative_error"] == result.agreement[""].relative_error
    assert "by_element" not in manifest["agreement"]["outputs"][""]
    assert manifest["warnings"] == []


def test_what_was_not_measured_has_no_agreement(result: sr.Result, tmp_path: Path) -> None:
    bare = replace(result, divergence=None, agreement=None)
    assert "held-out samples: not measured\n" in bare.summary()
    assert "agreement" not in bare.summary()
    bare.save(tmp_path / "model")
    manifest = json.loads((tmp_path / "model" / "manifest.json").read_text())
    assert (manifest["divergence"], manifest["agreement"]) == (None, None)


def test_little_left_is_warned_of_on_top(little_left: sr.Result, result: sr.Result) -> None:
    (warning,) = _warnings(little_left)
    assert _LOST in warning.text
    assert f"cosine {little_left.agreement.cosine:.4f}, relative error" in warning.text  # type: ignore[union-attr]
    title, first, *_ = little_left.summary().splitlines()
    assert title == "Sequential, compressed"
    assert first.startswith("Warning: verify: divergence ")
    assert _LOST not in little_left.summary().partition("Notes\n")[2]
    assert _warnings(result) == []


def test_outputs_that_are_not_finite_are_told_and_saved_as_json(study: sr.Study, tmp_path: Path) -> None:
    broken = study.apply(study.plan(macs=0.7), on_layer=_break)
    assert broken.divergence == math.inf
    (warning,) = _warnings(broken)
    assert "divergence inf relative squared error, cosine 0.0000, relative error inf: " in warning.text
    assert "outputs are not finite" in warning.text
    broken.save(tmp_path / "model")

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    text = (tmp_path / "model" / "manifest.json").read_text()
    manifest = json.loads(text, parse_constant=refuse)
    assert (manifest["divergence"], manifest["agreement"]["relative_error"]) == (None, None)
    assert manifest["warnings"] == [str(warning)]
    assert set(manifest["warnings"]) <= set(manifest["notes"])


def test_other_weights_are_not_warned_of_by_what_the_fit_lost(little_left: sr.Result) -> None:
    other = Note(where="calibrate", text="one more", is_warning=True)
    trained = replace(little_left, notes=(*little_left.notes, other)).with_model(little_left.model)
    assert _warnings(trained) == [other]
    assert trained.agreement is None
