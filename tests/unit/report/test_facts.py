# SPDX-License-Identifier: Apache-2.0
import json
import math
from dataclasses import replace

from slimrank.plan import Plan
from slimrank.records import Agreement, BlockDamage, ChannelMap, Cost, LayerSpec, Note, Summary
from slimrank.report import agreement_facts, cost_facts, plan_facts, result_facts, study_facts


def test_a_cost_has_every_metric() -> None:
    assert cost_facts(Cost(macs=1, params=2, bytes=3)) == {"macs": 1, "params": 2, "bytes": 3}


def test_a_result_as_json(summary: Summary) -> None:
    facts = json.loads(json.dumps(result_facts(summary)))
    assert list(facts) == [
        "before",
        "after",
        "keep_ratio",
        "divergence",
        "agreement",
        "damage",
        "unit",
        "damage_unit",
        "measurements",
        "exports",
        "layers",
        "warnings",
        "notes",
        "seconds",
    ]
    assert facts["divergence"] == 0.02314
    assert facts["agreement"] is None
    assert facts["warnings"] == []
    assert facts["keep_ratio"] == {"macs": 700_000 / 1_500_000, "params": 0.5, "bytes": 0.5}
    assert facts["measurements"] == [{"name": "accuracy", "before": 96.3, "after": 96.0, "unit": "%"}]
    assert facts["layers"][0] == {
        "name": "stem",
        "before": {"macs": 1_000_000, "params": 9_000, "bytes": 36_000},
        "after": {"macs": 200_000, "params": 3_000, "bytes": 12_000},
        "setting": {"method": "spatial_svd", "form": "v_h", "rank": 7},
        "slimmed": None,
        "damage": 0.0123,
        "fit": "sequential",
        "reason": None,
    }
    assert facts["layers"][1]["setting"] is None
    assert facts["notes"] == ['calibrate: few samples: "48" < 512']
    assert facts["seconds"] == {"study": 8.1, "apply": 3.0}


def test_an_agreement_as_json(summary: Summary, agreement: Agreement) -> None:
    warning = Note(where="verify", text="little left", is_warning=True)
    told = replace(summary, agreement=agreement, notes=(*summary.notes, warning))
    facts = json.loads(json.dumps(result_facts(told), allow_nan=False))
    assert facts["warnings"] == ["verify: little left"]
    assert facts["notes"] == ['calibrate: few samples: "48" < 512', "verify: little left"]
    assert list(facts["agreement"]) == ["top1", "cosine", "relative_error", "lost", "outputs"]
    assert facts["agreement"]["top1"] == 0.98906
    assert facts["agreement"]["outputs"]["logits"] == {
        "family": "categorical",
        "shape": [4, 50],
        "positions": 4,
        "weight": 1.0,
        "divergence": 2.48,
        "unit": "nats per sample",
        "lost": 0.02,
        "top1": 0.98906,
        "cosine": None,
        "relative_error": None,
        "worst": [2],
        "elements": [4],
        "by_element": [1.0, 0.99, 0.912, 1.0],
    }
    box = facts["agreement"]["outputs"]["box"]
    assert (box["unit"], box["top1"], box["cosine"]) == ("relative squared error", None, 0.99812)
    short = agreement_facts(agreement, has_elements=False)
    assert short["cosine"] == 0.99812
    assert "by_element" not in json.dumps(short)


def test_json_holds_nothing_that_is_not_finite(summary: Summary, agreement: Agreement) -> None:
    box = replace(
        agreement["box"],
        divergence=math.inf,
        lost=math.inf,
        relative_error=math.inf,
        by_element=(0.5, math.inf),
        elements=(2,),
    )
    broken = replace(
        summary,
        divergence=math.inf,
        damage=math.nan,
        layers=(replace(summary.layers[0], damage=math.inf),),
        agreement=Agreement({"": box}, math.inf),
        measurements=(replace(summary.measurements[0], after=math.nan),),
    )
    facts = json.loads(json.dumps(result_facts(broken), allow_nan=False))
    assert (facts["divergence"], facts["damage"], facts["layers"][0]["damage"]) == (None, None, None)
    assert facts["measurements"][0]["before"] == 96.3
    assert facts["measurements"][0]["after"] is None
    assert (facts["agreement"]["lost"], facts["agreement"]["relative_error"]) == (None, None)
    output = facts["agreement"]["outputs"][""]
    assert (output["divergence"], output["relative_error"], output["cosine"]) == (None, None, 0.99812)
    assert (output["by_element"], output["worst"]) == ([0.5, None], [1])


def test_a_study_as_json(
    specs: tuple[LayerSpec, ...],
    specs_cost: Cost,
    channels: ChannelMap,
    block_damages: tuple[BlockDamage, ...],
) -> None:
    notes, seconds = (Note(where="export", text="no"),), {"capture": 1.5}
    measured = study_facts(
        specs, specs_cost, "nats per sample", notes, seconds, channels=channels, blocks=block_damages
    )
    facts = json.loads(json.dumps(measured))
    assert list(facts) == ["before", "unit", "layers", "groups", "blocks", "notes", "seconds"]
    assert [(layer["name"], layer["reason"]) for layer in facts["layers"]] == [
        ("stem", None),
        ("spare", "never called"),
    ]
    assert facts["layers"][0]["weight_shape"] == list(specs[0].weight_shape)
    assert [group["name"] for group in facts["groups"]] == ["up", "heads", "down", "side"]
    assert facts["groups"][0] == {
        "name": "up",
        "units": 64,
        "unit_width": 1,
        "producers": ["up"],
        "consumers": ["down", "side"],
        "sizes": [["", "width"], ["head", "size"]],
        "reason": None,
    }
    assert facts["blocks"] == [{"name": "extra", "macs": 1000, "params": 500, "bytes": 2000, "damage": 0.5}]
    unmeasured = study_facts(specs, specs_cost, "nats", (), {}, channels=channels, blocks=())
    assert json.loads(json.dumps(unmeasured))["blocks"][0]["damage"] is None


def test_a_plan_as_json(slim_plan: Plan) -> None:
    facts = json.loads(json.dumps(plan_facts(slim_plan, "nats per sample")))
    assert facts["before"] == {"macs": 5000, "params": 4096, "bytes": 16384}
    assert facts["settings"] == {"down": {"method": "weight_svd", "form": "linear", "rank": 4}}
    assert facts["groups"] == {"up": list(range(24))}
    assert facts["dropped"] == ["extra"]
    assert (facts["select"], facts["damage"], facts["unit"]) == ("optimal", 0.25, "nats per sample")
    assert (facts["score_loss"], facts["gap"]) == (None, 0.01)
    assert facts["keep_ratio"]["macs"] == slim_plan.keep_ratio("macs")
