# SPDX-License-Identifier: Apache-2.0
"""What to do next, by what there is to gain."""

from collections.abc import Sequence

from slimrank.files import Json
from slimrank.report.page._reading import Facts, facts_of, number_of, rows_of, texts_of

# What holds less of the MACs, or of the damage, is not worth a line.
_LEAST = 0.03
# Lines that people read.
_MOST = 5
# Damage measured over predicted from which the parts disturb each other.
_WORSE = 3.0
# Share of the time that is left over that of the MACs from which a plan in measured time pays.
_SLOWER = 0.1
# Share of what always answering the average would lose from which training is advised.
_LOST = 0.02


def study_advice(data: Facts) -> list[Json]:
    """What to do next with a study.

    Args:
        data: of its page.

    Returns:
        Texts, each with the share of the MACs that it is about; the largest first.
    """
    lines = [*_left_alone(data), *_frozen(data), *_few_samples(data)]
    lines.sort(key=lambda line: -line[0])
    first = "Choose what to keep: study.plan(macs=0.5), or slimrank plan DIR --macs 0.5 --out plan.json."
    return [_line(first, None), *(_line(text, share) for share, text in lines[: _MOST - 1])]


def result_advice(data: Facts) -> list[Json]:
    """What to do next with a result.

    Args:
        data: of its page.

    Returns:
        Texts, each with the share of the MACs or of the damage that it is about, if any; the largest first.
    """
    lines = [*_costly(data), *_left_alone(data), *_frozen(data), *_few_samples(data), *_training(data)]
    lines.sort(key=lambda line: -line[0])
    return [
        *(_line(text, None) for text in _first_steps(data)),
        *(_line(text, share) for share, text in lines[:_MOST]),
    ][:_MOST]


def _first_steps(data: Facts) -> list[str]:
    """What is more than one layer."""
    texts = []
    divergence, damage = number_of(data["divergence"]), number_of(data["damage"])
    if data["divergence"] is None and data["unit"] == "":
        texts.append("Give batches, so that layers are fitted to data and the result is measured.")
    if divergence > _WORSE * damage > 0 and data["unit"] == data["damage_unit"]:
        texts.append(
            f"The divergence is {divergence / damage:.1f} times what was predicted layer by layer: take a "
            f"larger "
            "budget, give more samples, or train the result for a while (slimrank.distill needs no labels)."
        )
    names = [str(row["name"]) for row in rows_of(data["measurements"])]
    times = data.get("latency")
    if times is not None and data["keep_ratio"] is not None:
        before, after = (number_of(facts_of(times)[key]) for key in ("before_ms", "after_ms"))
        # Times are those of the last step: so are the MACs beside them.
        start, left = (number_of(facts_of(data[key])["macs"]) for key in ("start", "after"))
        share, macs = after / before if before else 0.0, left / start if start else 0.0
        if share > macs + _SLOWER:
            texts.append(
                f"{share:.0%} of the time is left, but {macs:.0%} of the MACs: plan in measured time "
                "(study.plan(latency=0.6, latencies=table))."
            )
    elif not any("latency" in name for name in names) and not data["exports"]:
        texts.append(
            "Fewer MACs are not always less time: measure it where the model will run, by "
            "result.export(path), or "
            "plan in measured time (slimrank.measure_latency, study.plan(latency=0.6))."
        )
    return texts


def _costly(data: Facts) -> list[tuple[float, str]]:
    """Layers that cause much of the predicted damage."""
    whole = number_of(data["damage"])
    if whole <= 0:
        return []
    named = [
        *((str(row["name"]), "layer", number_of(row.get("damage"))) for row in rows_of(data["layers"])),
        *((str(row["name"]), "channel group", number_of(row["damage"])) for row in rows_of(data["groups"])),
        *(
            (str(row["name"]), "dropped block", number_of(row["damage"]))
            for row in rows_of(data["blocks"])
            if row["dropped"]
        ),
    ]
    name, what, damage = max(named, key=lambda entry: entry[2], default=("", "", 0.0))
    if damage < _LEAST * whole:
        return []
    text = (
        f"The {what} {name} causes {damage / whole:.0%} of the predicted damage: keep more of it "
        f"(study.plan(..., skip=[{name!r}]) leaves it whole) where that is too much."
    )
    return [(damage / whole, text)]


def _few_samples(data: Facts) -> list[tuple[float, str]]:
    """Layers whose inputs were seen too seldom."""
    found = [str(note["text"]) for note in rows_of(data["notes"]) if note["where"] == "calibrate"]
    # Behind all that holds much of the MACs: how much there is to gain is not known.
    return [(_LEAST, f"{text}.") for text in found if "More samples help" in text]


def _training(data: Facts) -> list[tuple[float, str]]:
    """What the outputs lost, which training wins back in part."""
    agreement = data["agreement"]
    lost = 0.0 if agreement is None else number_of(facts_of(agreement)["lost"])
    if lost < _LOST:
        return []
    text = (
        f"The outputs lost {lost:.0%} of what always answering the average would lose: train the model for a "
        "while, without labels by slimrank.distill, or with them by slimrank.finetune."
    )
    return [(min(lost, 1.0), text)]


def _left_alone(data: Facts) -> list[tuple[float, str]]:
    """Layers that nothing can be done to, by their reason."""
    macs = number_of(facts_of(data["start"])["macs"])
    by_reason: dict[str, list[tuple[str, float]]] = {}
    for row in rows_of(data["layers"]):
        before = facts_of(row["before"])
        if not row["methods"] and not row["makes"] and not row["reads"] and row["reason"]:
            by_reason.setdefault(str(row["reason"]), []).append((str(row["name"]), number_of(before["macs"])))
    found = []
    for reason, layers in by_reason.items():
        share = sum(cost for _, cost in layers) / macs if macs else 0.0
        if share >= _LEAST:
            found.append((share, f"{_names(layers)} stay as they are ({share:.0%} of the MACs): {reason}."))
    return found


def _frozen(data: Facts) -> list[tuple[float, str]]:
    """Channel groups of which nothing can go, by their reason."""
    macs = number_of(facts_of(data["start"])["macs"])
    costs = {str(row["name"]): number_of(facts_of(row["before"])["macs"]) for row in rows_of(data["layers"])}
    by_reason: dict[str, set[str]] = {}
    for row in rows_of(data["groups"]):
        if row["reason"] is not None:
            touched = [*texts_of(row["makers"]), *texts_of(row["readers"])]
            by_reason.setdefault(str(row["reason"]), set()).update(touched)
    found = []
    for reason, touched_names in by_reason.items():
        layers = [(name, costs.get(name, 0.0)) for name in costs if name in touched_names]
        share = sum(cost for _, cost in layers) / macs if macs else 0.0
        if share >= _LEAST:
            found.append(
                (share, f"Channels between {_names(layers)} stay whole ({share:.0%} of the MACs): {reason}.")
            )
    return found


def _names(layers: Sequence[tuple[str, float]]) -> str:
    """The costliest of some layers, and how many more there are."""
    ordered = [name or "the model" for name, _ in sorted(layers, key=lambda layer: -layer[1])]
    return ", ".join(ordered[:2]) + (f" and {len(ordered) - 2} more" if len(ordered) > 2 else "")


def _line(text: str, share: float | None) -> Json:
    return {"text": text, "share": None if share is None else round(share, 4)}
