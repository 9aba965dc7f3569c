# SPDX-License-Identifier: Apache-2.0
import math
from dataclasses import replace

from slimrank.plan import Plan, Step, structure_of
from slimrank.records import Agreement, Cost, LayerSpec, Note, Setting, Summary
from slimrank.report import render_layers, render_plan, render_text
from specs import linear


def _cells(text: str, start: str) -> list[str]:
    """The first line that starts so, split where two blanks or more stand."""
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.split("  ") if cell.strip()]


def test_text_shows_totals_measurements_damage_and_time(summary: Summary) -> None:
    text = render_text(summary)
    assert text.startswith("half <of> it & more\n")
    assert _cells(text, "MACs") == ["MACs", "1.50 M", "700 k", "0.467"]
    assert _cells(text, "weight bytes") == ["weight bytes", "48.0 kB", "24.0 kB", "0.500"]
    assert _cells(text, "accuracy") == ["accuracy", "96.30 %", "96.00 %", "-0.30 points"]
    assert "measured on held-out samples: 0.0231 nats per sample\n" in text
    assert "Damage predicted by the plan: 0.0187 nats per sample\n" in text
    assert "Time: study 8.1 s, apply 3.0 s; 11.1 s in all\n" in text


def test_text_shows_each_layer_and_what_lies_outside(summary: Summary) -> None:
    text = render_text(summary)
    expected = ["stem", "spatial_svd v_h", "7", "1.00 M", "200 k", "0.200", "0.0123", "sequential"]
    assert _cells(text, "stem") == expected
    assert _cells(text, "block.0") == [
        "block.0.depthwise",
        "left alone",
        "-",
        "300 k",
        "300 k",
        "1.000",
        "-",
        "-",
    ]
    assert _cells(text, "(outside layers)") == ["(outside layers)", "100 k", "100 k", "1.000"]


def test_text_tells_a_shared_reason_once_and_keeps_square_brackets(summary: Summary) -> None:
    text = render_text(summary)
    reason = "depthwise [groups=32]; a <grouped> convolution has no SVD"
    assert f" - block.0.depthwise, block.1.depthwise: {reason}\n" in text
    assert ' - calibrate: few samples: "48" < 512\n' in text


def test_text_says_when_nothing_was_measured(summary: Summary) -> None:
    bare = replace(summary, divergence=None, damage=None, notes=(), seconds={}, measurements=(), layers=())
    text = render_text(bare)
    assert "held-out samples: not measured\n" in text
    for absent in ("Damage predicted", "Time:", "Notes", "Left alone", "accuracy"):
        assert absent not in text


def test_warnings_stand_under_the_title_and_nowhere_else(summary: Summary) -> None:
    warning = Note(where="verify", text="the outputs have little left", is_warning=True)
    other = Note(where="stem", text="another one", is_warning=True)
    text = render_text(replace(summary, notes=(warning, *summary.notes, other)))
    assert text.startswith(
        "half <of> it & more\n"
        "Warning: verify: the outputs have little left\n"
        "Warning: stem: another one\n\n"
        "counted"
    )
    assert text.count("little left") == text.count("another one") == 1
    assert 'Notes\n - calibrate: few samples: "48" < 512\n' in text
    assert "Notes" not in render_text(replace(summary, notes=(warning,)))
    assert "Warning" not in render_text(summary)


def test_the_agreement_stands_below_the_divergence(summary: Summary, agreement: Agreement) -> None:
    tokens = Agreement({"": agreement["logits"]}, 2.48)
    text = render_text(replace(summary, agreement=tokens, divergence=2.48))
    assert (
        "measured on held-out samples: 2.48 nats per sample, 0.62 per position (4)\n"
        "Held-out agreement: 98.91 % same top-1, lowest 91.2 % at position 2\n"
        "Damage predicted"
    ) in text
    assert "read as" not in text
    # A result whose model was replaced has none.
    assert "agreement" not in render_text(summary)


def test_several_outputs_have_a_table(summary: Summary, agreement: Agreement) -> None:
    text = render_text(replace(summary, agreement=agreement), width=90)
    assert (
        "Held-out agreement, mean over 2 outputs: 98.91 % same top-1; cosine 0.9981, relative error" in text
    )
    assert _cells(text, "output ")[:4] == ["output", "shape", "read as", "divergence"]
    assert _cells(text, "logits") == [
        *("logits", "4x50", "categorical", "2.48 nats", "0.62 (4)"),
        *("98.91 %", "-", "-", "91.2 % at position 2"),
    ]
    assert _cells(text, "box") == [
        *("box", "4", "gaussian", "0.00410 relative", "-"),
        *("-", "0.9981", "0.064", "0.12 at element [3]"),
    ]
    assert text.isascii()


def test_what_is_not_finite_is_told(summary: Summary, agreement: Agreement) -> None:
    box = replace(agreement["box"], divergence=math.inf, lost=math.inf, relative_error=math.inf, cosine=0.0)
    broken = replace(
        summary, divergence=math.inf, unit="relative squared error", agreement=Agreement({"": box}, math.inf)
    )
    text = render_text(broken)
    assert "measured on held-out samples: inf relative squared error\n" in text
    assert "Held-out agreement: cosine 0.0000, relative error inf, largest error 0.12" in text


def test_text_is_plain_ascii_within_its_width(summary: Summary) -> None:
    text = render_text(summary, width=90)
    assert text.isascii()
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 90
    assert all(line == line.rstrip() for line in text.splitlines())


def test_no_number_is_cut_where_the_width_is_too_small(summary: Summary) -> None:
    wide, narrow = render_text(summary), render_text(summary, width=30)
    assert narrow.isascii()
    for start in ("MACs", "stem", "block.0", "accuracy"):
        assert _cells(narrow, start) == _cells(wide, start)


def test_a_layer_without_reason_was_not_in_the_plan(summary: Summary) -> None:
    layers = (replace(summary.layers[1], reason=None),)
    assert " - block.0.depthwise: not in the plan\n" in render_text(replace(summary, layers=layers))


def test_layers_show_shape_calls_share_methods_and_reasons(
    specs: tuple[LayerSpec, ...], specs_cost: Cost
) -> None:
    text = render_layers(specs, specs_cost)
    expected = [
        "stem",
        "conv2d",
        "16x3x3x3",
        "1x16x8x8",
        "2",
        "55.3 k",
        "92.2 %",
        "448",
        "weight_svd, spatial_svd",
    ]
    assert _cells(text, "stem") == expected
    assert _cells(text, "spare") == ["spare", "Own<Linear>", "-", "-", "0", "0", "0.0 %", "0", "-"]
    assert _cells(text, "(outside") == ["(outside layers)", "4.70 k", "7.8 %"]
    assert "2 layers, 1 can be compressed; 60.0 k MACs, 448 parameters, 1.79 kB\n" in text
    assert " - spare: never called\n" in text


def test_layers_name_nothing_outside_when_all_is_counted(specs: tuple[LayerSpec, ...]) -> None:
    assert "(outside" not in render_layers(specs, Cost(macs=55_296, params=448, bytes=1_792))


def test_a_plan_shows_each_layer_what_it_costs_and_what_is_predicted() -> None:
    specs = [
        linear(name, 64, 64, has_bias=False, reason=reason)
        for name, reason in (("first", None), ("second", None), ("tied", "its weight is tied"))
    ]
    setting = Setting(method="weight_svd", form="linear", rank=16)
    plan = Plan(
        steps=(Step(structure=structure_of(specs), layers={"first": (setting,)}),),
        before=Cost(macs=12_288, params=12_288, bytes=49_152),
        has_bias=False,
        select="optimal",
        damage=0.25,
        gap=0.012,
    )
    text = render_plan(plan, "nats per sample")
    assert _cells(text, "first") == ["first", "weight_svd", "linear", "16", "4.10 k", "2.05 k", "0.500"]
    assert _cells(text, "second") == ["second", "left alone", "-", "4.10 k", "4.10 k", "1.000"]
    assert _cells(text, "MACs") == ["MACs", "12.3 k", "10.2 k", "0.833"]
    assert "optimal: 1 of 3 layers compressed; predicted damage 0.250 nats per sample" in text
    assert "could save at most 1.2 % of it" in " ".join(text.split())
    assert " - tied: its weight is tied\n" in text
    chosen_by_scores = replace(plan, score_loss=0.0125, steps=(*plan.steps, *plan.steps))
    text = " ".join(render_plan(chosen_by_scores, "nats per sample").split())
    assert "step 2, optimal: 1 of 3 layers" in text
    assert "predicted loss of the score 0.0125 (another choice could save at most 1.2 % of it)" in text
    for gap, told in (
        (0.0, "another choice could save at most 0.0 % of it"),
        (0.999, "another choice could save at most 99.9 % of it"),
        (0.9996, "no useful bound on what another choice could save"),
        (1.0, "no useful bound on what another choice could save"),
    ):
        text = " ".join(render_plan(replace(plan, gap=gap)).split())
        assert f"predicted damage 0.250 ({told})" in text


def test_damage_has_a_unit_of_its_own(summary: Summary) -> None:
    text = render_text(replace(summary, damage_unit="share of weight energy"))
    assert "Damage predicted by the plan: 0.0187 share of weight energy\n" in text
    assert "held-out samples: 0.0231 nats per sample\n" in text


def _slimmed(summary: Summary) -> Summary:
    first, second, third = summary.layers
    return replace(
        summary,
        layers=(
            replace(first, slimmed="64 -> 24 outputs, 64 -> 30 inputs"),
            replace(second, slimmed="32 -> 16 outputs", fit="sequential", reason=None),
            replace(third, slimmed="gone with block.1", reason=None),
        ),
    )


def test_text_shows_what_became_of_channels_and_leaves_such_layers_out_of_left_alone(
    summary: Summary, slim_plan: Plan
) -> None:
    text = render_text(_slimmed(summary))
    assert _cells(text, "stem")[1] == "spatial_svd v_h, channels 64 -> 24 outputs, 64 -> 30 inputs"
    assert _cells(text, "block.0")[1:3] == ["channels 32 -> 16 outputs", "-"]
    assert _cells(text, "block.1")[1] == "gone with block.1"
    assert "Left alone" not in text
    assert "keeps" not in text
    text = render_text(_slimmed(summary), plan=slim_plan)
    assert _cells(text, "up") == ["up", "channel_pruning", "24 of 64", "up", "down + 1 more", "-"]
    assert _cells(text, "extra") == ["extra", "dropped", "1.00 k", "20.0 %", "500", "-"]
    known = replace(_slimmed(summary), group_damages={"up": 0.125}, block_damages={"extra": 0.25})
    text = render_text(known, plan=slim_plan)
    assert _cells(text, "group")[-1] == _cells(text, "block ")[-1] == "damage"
    assert _cells(text, "up")[-1] == "0.125"
    assert _cells(text, "extra")[-1] == "0.250"


def test_the_model_itself_has_a_name(
    summary: Summary, specs: tuple[LayerSpec, ...], specs_cost: Cost, slim_plan: Plan
) -> None:
    """The rows of parameters that the outermost module holds."""
    (kept, *others) = summary.layers
    text = render_text(replace(summary, layers=(kept, *(replace(layer, name="") for layer in others[:1]))))
    assert _cells(text, "(model)")[:2] == ["(model)", "left alone"]
    assert " - (model): depthwise" in text
    text = render_layers((specs[0], replace(specs[1], name="")), specs_cost)
    assert _cells(text, "(model)")[:2] == ["(model)", "Own<Linear>"]
    assert " - (model): never called" in text
    step = slim_plan.steps[0]
    layers = {**step.structure.layers, "": replace(step.structure.layers["alone"], name="")}
    step = replace(step, structure=replace(step.structure, layers=layers))
    assert _cells(render_plan(replace(slim_plan, steps=(step,))), "(model)")[1] == "left alone"


def test_a_plan_shows_groups_blocks_and_slimmed_layers(slim_plan: Plan) -> None:
    text = render_plan(slim_plan, "nats per sample")
    assert _cells(text, "layer")[4] == "channels"
    assert _cells(text, "up") == ["up", "slimmed", "-", "64 -> 24 outputs", "1.02 k", "384", "0.375"]
    assert _cells(text, "down") == [
        *("down", "weight_svd", "linear", "4", "64 -> 24 inputs"),
        *("2.05 k", "224", "0.109"),
    ]
    assert _cells(text, "alone") == ["alone", "left alone", "-", "64", "64", "1.000"]
    assert _cells(text, "extra.fc") == ["extra.fc", "dropped", "-", "gone with extra", "500", "0", "0.000"]
    assert _cells(text[text.index("keeps") :], "up") == [
        *("up", "channel_pruning", "24 of 64", "up", "down + 1 more")
    ]
    assert _cells(text, "extra ") == ["extra", "dropped", "1.00 k", "20.0 %", "500"]
    assert "optimal: 1 of 5 layers, 1 of 2 groups, 1 block compressed; predicted damage 0.250" in text
    # Slimmed, so no longer one that nothing can be done to.
    assert " - alone: too small\n" in text
    assert "side" not in text[text.index("Cannot be compressed") :]
    assert text.isascii()
