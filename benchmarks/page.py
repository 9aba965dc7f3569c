# SPDX-License-Identifier: Apache-2.0
"""Sets the tables of the pages from ``benchmarks/results/``, between their markers."""

import itertools
import math
import re
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.plots import NAMES, growth_rows, speed_rows
from benchmarks.tables import RESULTS, read_table, table_path

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    DOCS / "benchmarks.md",
    DOCS / "guidebook.md",
    DOCS / "howto" / "quantize.md",
    DOCS.parent / "README.md",
)
COLUMNS = ("optimal", "independent fits", "without G", "greedy", "uniform", "data-free")
REFERENCES = ("AIMET spatial_svd", "AIMET weight_svd")
RANDOM = "random networks"
NOT_RUN = "not run"
# Interquartile range over median up to which times are told.
QUIET = 0.35
BUSY = "the machine was busy"
Row = Mapping[str, str]
_WITH_LARGE = {**NAMES, "resnet50": "ResNet-50-sized"}


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _lost(row: Row | None) -> str:
    if row is None:
        return NOT_RUN
    macs = float(row.get("encoder_macs_counted") or row["macs_counted"])
    # A table without a column for all MACs counts all, and for the transformer ratios are of some.
    is_of_all = row["network"] == "vit" and "all_macs_counted" not in row
    off = "" if abs(macs - float(row["ratio_asked"])) < 0.005 or is_of_all else f" (at {macs:.2f})"
    return f"{float(row['points_lost']):.2f} ± {float(row['interval_95']):.2f}{off}"


def accuracy() -> str:
    """Points lost, by network and budget."""
    rows = {(r["network"], r["ratio_asked"], r["way"]): r for r in read_table(table_path("accuracy"))}
    ways = (*COLUMNS, *REFERENCES)
    lines = [
        [NAMES[network], ratio, *(_lost(rows.get((network, ratio, way))) for way in ways)]
        for network in NAMES
        for ratio in ("0.75", "0.5", "0.35", "0.25")
    ]
    heads = ("network", "MACs", "**slimrank**", *COLUMNS[1:], "AIMET spatial SVD", "AIMET weight SVD")
    return _table(heads, lines)


def headline() -> str:
    """Half of the MACs and its measured time, beside the better of AIMET's two methods."""
    clocks = {
        r["network"]: r
        for r in read_table(table_path("by-time"))
        if (r["way"], r["budget"]) == ("by MACs", "0.5")
    }
    rows = {
        (r["network"], r["way"]): r for r in read_table(table_path("accuracy")) if r["ratio_asked"] == "0.5"
    }
    times = {r["network"]: r for r in speed_rows("svd")}
    lines = []
    for network in NAMES:
        own = rows[network, "optimal"]
        theirs = [rows[network, way] for way in REFERENCES if (network, way) in rows]
        best = min(theirs, key=lambda row: float(row["points_lost"]))
        lines.append(
            [
                NAMES[network],
                f"{own['accuracy_before']} %",
                f"**{_lost(own)}**",
                f"{float(clocks[network]['time_measured']):.2f}" if network in clocks else NOT_RUN,
                _lost(best),
                f"{float(times[network]['seconds']):.1f} s",
                f"{float(times[network]['aimet_seconds']):.0f} s",
            ]
        )
    return _table(
        ("network", "accuracy before", "points lost, slimrank", "measured time kept",
         "points lost, AIMET 2.42", "slimrank takes", "AIMET takes"),
        lines,
    )  # fmt: skip


def given() -> str:
    """What was given to each, at half of the MACs."""
    rows = [r for r in read_table(table_path("accuracy")) if r["ratio_asked"] == "0.5"]
    lines = [
        [
            NAMES[row["network"]],
            row["way"],
            row["accuracy_before"],
            row["accuracy_after"],
            row["unlabelled_images"],
            row["labelled_images"],
            row["evaluations"],
            row["divergence"],
            row["damage_predicted"],
        ]
        for row in rows
        if row["way"] in ("optimal", *REFERENCES)
    ]
    return _table(
        ("network", "way", "before, %", "after, %", "unlabelled images", "labelled images", "evaluations",
         "divergence, nats", "predicted"),
        lines,
    )  # fmt: skip


def text() -> str:
    """Points lost and likeness of the embeddings on the text task, by budget."""
    rows = {(r["ratio_asked"], r["way"]): r for r in read_table(table_path("text"))}

    def cell(row: Row | None) -> str:
        return "" if row is None else f"{_lost(row)} / {float(row['cosine']):.3f}"

    ways = (*COLUMNS, "data-free, uniform")
    lines = [[ratio, *(cell(rows.get((ratio, way))) for way in ways)] for ratio in ("0.75", "0.5", "0.35")]
    return _table(("MACs", "**slimrank**", *ways[1:]), lines)


def data() -> str:
    """Points lost by number and kind of pictures."""
    lines = [
        [
            NAMES[row["network"]],
            row["images"],
            {"none": "pictures of the task"}.get(row["shift"], row["shift"]),
            row["seed"],
            f"{float(row['points_lost']):.2f} ± {float(row['interval_95']):.2f}",
            row["divergence_on_fresh_pictures"],
            row["says_data_are_few"],
        ]
        for row in read_table(table_path("data"))
    ]
    heads = (
        "network",
        "images",
        "kind",
        "seed",
        "points lost",
        "divergence on fresh pictures",
        "says data are few",
    )
    return _table(heads, lines)


# What the two sets of methods that are timed beside AIMET are called.
CALLS = {"all": "default call, all methods", "svd": "the two SVD methods alone"}


def speed() -> str:
    """Seconds beside AIMET, and how many times as fast the default call and the SVD methods alone are."""
    by_methods = {methods: speed_rows(methods) for methods in CALLS}
    by_methods = {methods: rows for methods, rows in by_methods.items() if rows}
    by_network = {row["network"]: row for rows in by_methods.values() for row in rows}
    theirs = _table(
        ("network", "AIMET's scheme", "its evaluations", "its seconds", "spatial SVD, then channel pruning",
         "evaluations", "seconds", "MACs kept", "points lost"),
        [
            [
                NAMES[network],
                row["aimet_scheme"].replace("_", " "),
                row["aimet_evaluations"],
                row["aimet_seconds"],
                _recipe(row),
                *(row.get(f"aimet_both_{name}") or "" for name in
                  ("evaluations", "seconds", "macs_counted", "points_lost")),
            ]
            for network, row in by_network.items()
        ],
    )  # fmt: skip
    lines = [
        [
            NAMES[row["network"]],
            CALLS[methods],
            row["seconds"],
            row.get("cpu_seconds") or "",
            f"**{float(row['times_faster']):.1f}**",
            f"**{float(row['times_faster_both']):.1f}**" if row.get("times_faster_both") else "",
            row.get("compress_seconds") or "",
            row["further_plan_seconds"],
            row["floor_seconds"],
            f"{float(row['peak_mb']):.0f}",
        ]
        for network in by_network
        for methods, rows in by_methods.items()
        for row in rows
        if row["network"] == network
    ]
    ours = _table(
        ("network", "slimrank", "seconds", "CPU seconds", "times faster than AIMET's scheme",
         "than its recipe of both", "sr.compress, s", "a further plan, s", "one forward + backward, s",
         "peak above the model, MB"),
        lines,
    )  # fmt: skip
    told = "\n".join(f"- {_means(methods, rows)}" for methods, rows in by_methods.items())
    fails = [
        f"- {NAMES[network]}: `{row['aimet_both_note'].removeprefix('fails: ')}`"
        for network, row in by_network.items()
        if row.get("aimet_both_note")
    ]
    why = "\n\nAIMET's channel pruning, and so its recipe of both, fails on\n\n" + "\n".join(fails)
    return f"Geometric means over the networks:\n\n{told}\n\n{ours}\n\n{theirs}{why if fails else ''}"


def _recipe(row: Row) -> str:
    """One cell: whether AIMET's recipe of two steps came through."""
    if row.get("aimet_both_seconds"):
        return "runs"
    return "fails" if row.get("aimet_both_note") else NOT_RUN


def _means(methods: str, rows: Sequence[Row]) -> str:
    """How many times as fast as AIMET: means over networks."""
    scheme = statistics.geometric_mean([float(row["times_faster"]) for row in rows])
    text = f"{CALLS[methods]}: **{scheme:.1f} times** as fast as AIMET's scheme ({len(rows)} networks)"
    both = [float(row["times_faster_both"]) for row in rows if row.get("times_faster_both")]
    if both:
        mean = statistics.geometric_mean(both)
        text += f", **{mean:.1f} times** as fast as its recipe of both ({len(both)} networks)"
    return text


def phases() -> str:
    """Where the seconds go."""
    rows = [(methods, row) for methods in CALLS for row in speed_rows(methods)]
    columns = dict.fromkeys(name for _, row in rows for name in row if name.startswith("phase_"))
    names = [name for name in columns if any(float(row.get(name) or 0) for _, row in rows)]
    lines = [
        [
            NAMES[row["network"]],
            CALLS[methods],
            *(row.get(name) or "" for name in names),
            row["times_floor"],
        ]
        for methods, row in rows
    ]
    heads = ("network", "slimrank", *(name.removeprefix("phase_") for name in names))
    return _table((*heads, "times one forward + backward"), lines)


def growth() -> str:
    """Seconds by size, and the exponents with which they grow from one size to the next."""
    lines = []
    for name in ("depth", "width"):
        before: Row | None = None
        for row in growth_rows(name):
            step = before and {
                key: _slope(before, row, name, key) for key in ("cpu_seconds", "floor_cpu_seconds")
            }
            lines.append(
                [
                    f"{name} x{row[name]}",
                    f"{int(row['macs']) / 1e6:.0f}" if row["macs"] else "",
                    row["seconds"] or row["note"],
                    row["cpu_seconds"],
                    step["cpu_seconds"] if step else "",
                    row["floor_cpu_seconds"],
                    step["floor_cpu_seconds"] if step else "",
                    row["times_floor_cpu"],
                    f"{float(row['peak_mb']):.0f}" if row["peak_mb"] else "",
                ]
            )
            before = row if row["cpu_seconds"] else before
    return _table(
        ("size", "million MACs", "seconds", "CPU seconds", "grows with size to the power of",
         "one forward + backward, CPU seconds", "its power", "times one forward + backward", "peak, MB"),
        lines,
    )  # fmt: skip


def _slope(before: Row, row: Row, name: str, key: str) -> str:
    """Exponent of a column in the depth or width, between two sizes."""
    if not row[key]:
        return ""
    growth = math.log(float(row[key]) / float(before[key]))
    return f"{growth / math.log(float(row[name]) / float(before[name])):.2f}"


def scale() -> str:
    """Large networks: seconds, what the least possible would be, memory; phases below."""
    rows = read_table(table_path("scale"))
    done = [row for row in rows if row["outcome"] == "ok"]

    def cell(row: Row, name: str) -> str:
        """Wall seconds, and those of the CPU."""
        wall, cpu = row.get(f"{name}_seconds"), row.get(f"{name}_cpu_seconds")
        return f"{float(wall):.1f} / {float(cpu):.1f}" if wall and cpu else ""

    lines = [
        [
            row["network"],
            f"{int(row['macs_before']) / 1e9:.1f}" if row["macs_before"] else "",
            row["macs_counted"] if row["outcome"] == "ok" else row["outcome"],
            *(cell(row, name) for name in ("study", "plan", "apply", "floor")),
            row["times_floor_cpu"],
            row["decomposition_cpu_seconds"],
            row["times_floor_and_decompositions_cpu"],
            f"{float(row['peak_mb'] or row['study_peak_mb'] or 0) / 1000:.1f}" if row["macs_before"] else "",
        ]
        for row in rows
    ]
    short = _table(
        ("network", "GMACs", "MACs kept", "study, s / CPU s", "plan", "apply", "one forward + backward",
         "times that", "decompositions at best, CPU s", "times both together", "peak, GB"),
        lines,
    )  # fmt: skip
    names = [name for name in (rows[0] if rows else {}) if name.startswith("phase_")]
    each = _table(
        ("network", *(name.removeprefix("phase_") for name in names)),
        [
            [
                row["network"],
                *(
                    f"{row[name]} / {row[name.replace('phase_', 'cpu_')]}" if row[name] else ""
                    for name in names
                ),
            ]
            for row in rows
        ],
    )
    told = "".join(
        f"\n\nAIMET would take about {float(row['aimet_seconds_estimated']) / 3600:.0f} hours for "
        f"{row['network']}: {row['aimet_evaluations']} evaluations of 2,000 pictures each; slimrank is "
        f"{row['times_faster_estimated']} times as fast."
        for row in done
        if row.get("aimet_seconds_estimated")
    )
    details = f"<details><summary>seconds by phase, wall / CPU</summary>\n\n{each}\n\n</details>"
    return f"{short}{told}\n\n{details}"


def large() -> str:
    """ResNet-50 in a sentence; nothing where it has not come through."""
    path = table_path("scale")
    row = next((r for r in read_table(path) if r["network"] == "resnet50" and r["outcome"] == "ok"), None)
    if row is None:
        return ""
    link = path.relative_to(DOCS.parent).as_posix()
    return (
        f"For ResNet-50 at {row['pixels']} px (random weights, {row['samples']} images, threads: "
        f"{row['threads']}), the study takes {float(row['study_seconds']):.0f} s, a plan "
        f"{float(row['plan_seconds']):.1f} s and apply {float(row['apply_seconds']):.0f} s, with\n"
        f"{float(row['peak_mb']) / 1000:.1f} GB of memory above model and images ([row]({link}) of `make "
        f"bench-scale`, which takes ten networks). AIMET's {row['aimet_evaluations']}\nevaluations on 2,000 "
        f"images each would take {float(row['aimet_seconds_estimated']) / 3600:.0f} hours there, estimated "
        "from one measured forward."
    )


def gpu() -> str:
    """Seconds on a GPU and on the CPU beside it; nothing where no GPU was measured."""
    tables = [read_table(path) for path in sorted(RESULTS.glob("gpu-*-torch*.csv"))]
    if not tables:
        return ""
    lines = [
        [
            row["gpu"],
            row["network"],
            f"{row['samples']} of {row['pixels']} px" if row["samples"] else "",
            {"cuda": "GPU", "cpu": f"CPU, {row['threads']} threads"}[row["device"]],
            row["study_seconds"] or row["note"],
            *(row[f"{step}_seconds"] for step in ("plan", "apply", "floor")),
            row["times_floor"],
            row["macs_counted"],
            row["divergence"],
            row["peak_cuda_mb"],
            row["torch"],
        ]
        for rows in tables
        for row in rows
    ]
    return _table(
        ("GPU", "network", "pictures", "run on", "study, s", "plan, s", "apply, s", "forward + backward, s",
         "times that", "MACs kept", "divergence", "peak of the GPU's memory, MB", "torch"),
        lines,
    )  # fmt: skip


def ablation() -> str:
    """What was tried."""
    rows = read_table(table_path("ablation"))
    by_idea: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_idea.setdefault(row["idea"], {})[row["network"]] = row

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        return f"{float(row['points_lost']):.2f} / {float(row['divergence_on_fresh_pictures']):.4f}"

    lines = [[idea, *(cell(own.get(network)) for network in NAMES)] for idea, own in by_idea.items()]
    ratios = {row["network"]: row["ratio_asked"] for row in rows}
    return _table(("idea", *(f"{NAMES[n]}, {ratios.get(n, '')}" for n in NAMES)), lines)


def scores() -> str:
    """AIMET's own procedure done by slimrank."""
    lines = [
        [
            NAMES[row["network"]],
            row["method"].replace("_", " "),
            row["aimet_seconds"],
            row["seconds"],
            f"**{float(row['times_faster']):.1f}**",
            row["scores_seconds"],
            row["scores_seconds_without_prefix_cache"],
            row["evaluations"],
            row["macs_counted"],
            row["points_lost"],
        ]
        for row in read_table(table_path("speed-scores"))
    ]
    return _table(
        ("network", "method", "AIMET, s", "slimrank, s", "times faster", "of it the table, s",
         "the table without prefix cache, s", "evaluations", "MACs kept", "points lost"),
        lines,
    )  # fmt: skip


def recovery() -> str:
    """What training wins back."""
    lines = [
        [
            NAMES[row["network"]],
            row["ratio_asked"],
            row["way"],
            f"{float(row['points_lost']):.2f} ± {float(row['interval_95']):.2f}",
            row["labels"],
            row["seconds"],
        ]
        for row in read_table(table_path("recovery"))
    ]
    return _table(("network", "MACs", "training", "points lost", "labels", "seconds"), lines)


def methods() -> str:
    """Methods and combinations."""
    rows = read_table(table_path("methods"))
    by_way: dict[str, dict[tuple[str, str], Row]] = {}
    for row in rows:
        by_way.setdefault(row["way"], {})[row["network"], row["ratio_asked"]] = row
    cases = [(network, ratio) for network in NAMES for ratio in ("1.0", "0.5", "0.35")]
    cases = [case for case in cases if any(case in own for own in by_way.values())]

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        return f"{float(row['points_lost']):.2f} / {float(row['divergence_on_fresh_pictures']):.4f}"

    lines = [[way, *(cell(own.get(case)) for case in cases)] for way, own in by_way.items()]
    heads = [NAMES[network] if ratio == "1.0" else f"{NAMES[network]}, {ratio}" for network, ratio in cases]
    return _table(("way", *heads), lines)


def zoo() -> str:
    """How far slimrank and Torch-Pruning come on every architecture; counted where both were run."""
    every = [row for row in read_table(table_path("zoo")) if row["network"] != RANDOM]
    rows = [row for row in every if row["ok"]]
    both = [row for row in rows if row["torch_pruning"]]
    sources = list(dict.fromkeys(row["source"] for row in rows))

    def counts(asked: Sequence[str]) -> list[str]:
        own = [row for row in both if row["source"] in asked]
        ran = sum(row["ok"] == "yes" for row in own)
        theirs = sum(row["torch_pruning"] == "ok" for row in own)
        return [str(len(own)), str(ran), str(theirs)]

    lines = [[source, *counts([source])] for source in sources]
    short = _table(
        ("networks of", "both tried on", "**slimrank runs**", "Torch-Pruning 1.6.1 runs"),
        [*lines, ["all", *counts(sources)]],
    )
    ran = sum(row["ok"] == "yes" for row in rows)
    tried = (
        f"slimrank was tried on {len(rows)} of {len(every)} networks and runs on **{ran}**. "
        f"On {len(both)} of these Torch-Pruning was tried as well:"
    )
    each = _table(
        ("network", "slimrank", "layers that can change", "groups that can go", "floor of the MACs",
         "seconds of the study", "of both applies", "Torch-Pruning"),
        [_network(row) for row in rows],
    )  # fmt: skip
    return f"{tried}\n\n{short}\n\n<details><summary>every network</summary>\n\n{each}\n\n</details>"


def _network(row: Row) -> list[str]:
    """One architecture: what came of it, or how far it got."""
    got = "runs" if row["ok"] == "yes" else f"{row['failed_step']}: {_cell(row['error'])}"
    return [
        f"{row['source']} {row['network']}",
        got,
        _part(row["layers_open"], row["layers"]),
        _part(row["groups_live"], row["groups"]),
        row["floor"],
        *(row[f"{step}_cpu_s"] or row[f"{step}_s"] for step in ("study", "apply")),
        _cell(row["torch_pruning"] or NOT_RUN),
    ]


def export() -> str:
    """How many compressed networks every format takes, and why not the others."""
    rows = read_table(table_path("export"))
    formats = list(dict.fromkeys(row["format"] for row in rows))
    counted, refused = [], []
    for format in formats:
        own = [row for row in rows if row["format"] == format]
        equal = [row for row in own if row["outcome"] == "exported"]
        free = sum(row["dynamic"] == "yes" for row in equal)
        worst = max((float(row["max_error"]) for row in equal), default=0.0)
        counted.append(
            [
                format,
                str(len(own)),
                f"**{len(equal)}**",
                str(free),
                f"{worst:.1e}",
                str(len(own) - len(equal)),
            ]
        )
        whys: dict[str, list[str]] = {}
        for row in own:
            if row["outcome"] != "exported":
                whys.setdefault(_why_not(row), []).append(row["network"])
        refused += [[format, str(len(names)), why, ", ".join(names)] for why, names in whys.items()]
    heads = ("format", "tried", "**exported and equal**", "of any batch", "largest error", "not exported")
    short = _table(heads, counted)
    if refused:
        short += "\n\n" + _table(("format", "networks", "why not", "which"), refused)
    cells: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        cells.setdefault((row["source"], row["network"]), {})[row["format"]] = row
    each = _table(
        ("network", "MACs", "groups narrowed", "layers split", *formats),
        [
            [
                " ".join(key),
                *(next(iter(own.values()))[column] for column in ("macs", "narrowed", "split")),
                *(_exported(own.get(format)) for format in formats),
            ]
            for key, own in cells.items()
        ],
    )
    return f"{short}\n\n<details><summary>every network</summary>\n\n{each}\n\n</details>"


def quantize() -> str:
    """Points that int8 loses, size and time, whole and compressed, by network and runtime."""
    rows = {(r["network"], r["format"], r["file"]): r for r in read_table(table_path("quantize"))}
    heads = (
        "network", "runtime", "`quantize=`", "points lost at half of the MACs", "points lost by int8, whole",
        "**points lost by int8, at half**", "kB: whole, int8, half, half int8",
        "ms: whole, int8, half, half int8", "half int8 / whole",
    )  # fmt: skip
    lines = []
    for network, format in dict.fromkeys(key[:2] for key in rows):
        for precision in ("int8", "int8_weights"):
            files = ("original", f"original {precision}", "compressed", f"compressed {precision}")
            found = [rows.get((network, format, file)) for file in files]
            whole, whole_int8, half, half_int8 = found
            if whole is None or whole_int8 is None or half is None or half_int8 is None:
                continue
            four = (whole, whole_int8, half, half_int8)
            is_quiet = all(float(row["spread"]) <= QUIET for row in four)
            lines.append(
                [
                    NAMES.get(network, "MiniLM"),
                    format,
                    precision,
                    f"{float(half['points_lost']):.2f} ± {float(half['interval_95']):.2f}",
                    *(
                        f"{float(row['int8_points_lost']):.2f} ± {float(row['int8_interval_95']):.2f}"
                        for row in (whole_int8, half_int8)
                    ),
                    ", ".join(f"{int(row['bytes']) / 1000:.0f}" for row in four),
                    ", ".join(f"{float(row['ms']):.3f}" for row in four) if is_quiet else BUSY,
                    f"{float(half_int8['ms']) / float(half_int8['original_ms']):.2f}" if is_quiet else "",
                ]
            )
    return _table(heads, lines)


def latency() -> str:
    """How far predicted times were from measured ones, on two processors."""
    return "\n\n".join(
        f"{machine}:\n\n{_errors_of_times(read_table(table_path(name)))}"
        for name, machine in (
            ("latency-vnni", "On the processor of most tables here, with VNNI"),
            ("latency", "On another, without it"),
        )
    )


def _errors_of_times(rows: Sequence[Row]) -> str:
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("network", "backend", "precision", "batch"))
        found.setdefault(key, []).append(row)
    heads = (
        "network",
        "runtime",
        "precision",
        "batch",
        "plans",
        "median error",
        "within 5 %",
        "largest error",
        "beside the original in int8: median, within 5 %",
        "median spread of what is measured",
    )
    lines = []
    for (network, *key), own in found.items():
        errors = [abs(float(row["error"])) for row in own]
        alike = [
            abs((1 + float(row["error"])) * float(standing) / float(row["standing_predicted"]) - 1)
            for row in own
            if row["precision"] == "int8" and (standing := row.get("standing_measured"))
        ]
        spread = statistics.median(float(row["spread"]) for row in own)
        lines.append(
            [
                _WITH_LARGE[network],
                *key,
                str(len(errors)),
                f"{statistics.median(errors):.1%}",
                f"{sum(error <= 0.05 for error in errors) / len(errors):.0%}",
                f"{max(errors):.1%}",
                _median_and_right(alike) if alike else "",
                f"{spread:.1%}",
            ]
        )
    return _table(heads, lines)


def _median_and_right(errors: Sequence[float]) -> str:
    right = sum(error <= 0.05 for error in errors) / len(errors)
    return f"{statistics.median(errors):.1%}, {right:.0%}"


def budgets() -> str:
    """What was asked, and what was measured of what was made for it."""
    lines = [
        [
            _WITH_LARGE[row["network"]],
            row["backend"],
            row["precision"],
            row["asked"] or row["budget"],
            row["predicted"],
            row["measured"] or row["note"],
            row["spread"],
            row["rounds"],
            f"{float(row['points_lost']):.2f} ± {float(row['interval_95']):.2f}"
            if row["points_lost"]
            else "",
        ]
        for row in read_table(table_path("budgets"))
    ]
    heads = (
        "network", "runtime", "precision", "asked", "predicted", "measured", "spread", "rounds",
        "points lost, in float",
    )  # fmt: skip
    met = [float(row["above"]) for row in read_table(table_path("budgets")) if row["measured"]]
    told = (
        f"Of {len(lines)} budgets {sum(above <= 0.05 for above in met)} are met, "
        f"{sum(above <= 0.02 for above in met)} of them within 1.02 of what was asked, and "
        f"{len(lines) - len(met)} are refused as out of reach; the slowest result is at {1 + max(met):.3f} "
        "of what was asked."
    )
    return f"{told}\n\n<details><summary>each budget</summary>\n\n{_table(heads, lines)}\n\n</details>"


def latency_int8() -> str:
    """Files in int8: as they stand, planned by MACs, and planned by measured times of int8."""
    rows = read_table(table_path("latency-int8"))
    int8 = {row["network"]: float(row["ratio"]) for row in rows if row["file"] == "original int8"}
    lines = [
        [
            NAMES[row["network"]],
            row["file"],
            f"{1 / float(row['ratio']):.1f}",
            f"{int8[row['network']] / float(row['ratio']):.2f}",
            f"{float(row['points_lost']):.2f} ± {float(row['interval_95']):.2f}",
            f"{int(row['bytes']) / 1000:.0f}",
        ]
        for row in rows
        if row["file"] != "original float"
    ]
    heads = (
        "network", "file", "times as fast as the original", "as the original in int8", "points lost", "kB",
    )  # fmt: skip
    return _table(heads, lines)


def by_time() -> str:
    """Plans by MACs, and by time at the time that these take; what others make below."""
    rows = read_table(table_path("by-time"))
    own = {(row["network"], row["way"], row["budget"]): row for row in rows}

    def cells(row: Row | None) -> list[str]:
        """Time, points lost."""
        if row is None or not row["points_lost"]:
            return [row["note"] if row else NOT_RUN, ""]
        return [row["time_measured"], f"{float(row['points_lost']):.2f} ± {float(row['interval_95']):.2f}"]

    pairs = [
        [NAMES[network], budget, *cells(row), *cells(own.get((network, "by time", budget)))]
        for (network, way, budget), row in own.items()
        if way == "by MACs"
    ]
    equal = _table(
        ("network", "MACs", "its time, measured", "points lost", "planned by time: its time", "points lost"),
        pairs,
    )
    others = [
        [NAMES[row["network"]], row["way"], row["budget"], *cells(row)]
        for row in rows
        if row["way"] not in ("by MACs", "by time")
    ]
    heads = ("network", "way", "asked", "its time, measured", "points lost")
    return f"{equal}\n\n<details><summary>others</summary>\n\n{_table(heads, others)}\n\n</details>"


def _exported(row: Row | None) -> str:
    """One cell: the error of the outputs, or why there is no file."""
    if row is None:
        return NOT_RUN
    if row["outcome"] != "exported":
        return row["outcome"]
    return row["max_error"] + ("" if row["dynamic"] == "yes" else ", one size of batch")


def _why_not(row: Row) -> str:
    """The reason of a row without a file, the same for like ones."""
    if row["operator"]:
        return f"no translation of `{row['operator']}`"
    if row["outcome"] in ("died", "not compressed"):
        return _cell(f"{row['outcome']}: {row['error']}", 120)
    # Without the name of the network, so that like ones count as one.
    return _cell(row["error"].partition(" cannot be ")[2] or row["error"], 120)


def _part(some: str, every: str) -> str:
    """So many of so many, where both are known."""
    return f"{some} of {every}" if some and every else ""


def _cell(text: str, most: int = 60) -> str:
    """Text that a table can hold."""
    text = text.replace("|", "/")
    return text if len(text) <= most else f"{text[:most]}..."


def pruning() -> str:
    """Points lost by channel pruning and by joint plans; all rows of Torch-Pruning below."""
    rows = read_table(table_path("pruning"))
    by_key = {(row["network"], row["ratio_asked"], row["way"]): row for row in rows}
    ours = ("pruning only", "factors only", "joint", "compress")
    scopes = tuple(dict.fromkeys(row["way"] for row in rows if row["way"].startswith("Torch-Pruning")))
    orders = tuple(dict.fromkeys(row["way"] for row in rows if row["way"].endswith(" order")))

    def cell(network: str, ratio: str, way: str) -> str:
        row = by_key.get((network, ratio, way))
        if row is None:
            return NOT_RUN
        return _lost(row) if row["points_lost"] else row["note"].split(":")[0]

    def whys() -> Iterator[str]:
        """What the cells of AIMET without a figure mean."""
        for network in NAMES:
            own = [row for row in rows if (row["network"], row["way"]) == (network, "AIMET")]
            notes = dict.fromkeys(row["note"] for row in own if not row["points_lost"])
            if not own:
                yield f"{NAMES[network]}: its run was not finished here"
            elif notes:
                yield f"{NAMES[network]}: {'; '.join(f'`{note}`' for note in notes)}"

    def best(network: str, ratio: str, start: str) -> str:
        found = [row for row in rows if (row["network"], row["ratio_asked"]) == (network, ratio)]
        found = [row for row in found if row["way"].startswith(start) and row["points_lost"]]
        return _lost(min(found, key=lambda row: float(row["points_lost"]))) if found else ""

    cases = [(network, ratio) for network in NAMES for ratio in ("0.7", "0.5", "0.35")]
    heads = (
        *ours[:3],
        "**compress**",
        "AIMET",
        "Torch-Pruning Taylor",
        "magnitude",
    )
    lines = [
        [NAMES[network], ratio, *(cell(network, ratio, way) for way in (*ours, "AIMET"))]
        + [best(network, ratio, f"Torch-Pruning group {kind}") for kind in ("Taylor", "magnitude")]
        for network, ratio in cases
    ]
    short = _table(("network", "MACs", *heads), lines)
    by_case = ("way", *(f"{NAMES[network]}, {ratio}" for network, ratio in cases))

    def every(ways: Iterable[str]) -> str:
        lines = [[way.removeprefix("Torch-Pruning "), *(cell(*case, way) for case in cases)] for way in ways]
        return _table(by_case, lines)

    told = "".join(f"- {why}\n" for why in whys())
    short += f"\n\nAIMET has no figures for\n\n{told.rstrip()}" if told else ""
    own = (
        f"\n\nOther orders of channels, all else alike\n\n{every(('pruning only', *orders))}"
        if orders
        else ""
    )
    details = f"<details><summary>every way of Torch-Pruning</summary>\n\n{every(scopes)}\n\n</details>"
    return f"{short}{own}\n\n{details}"


def auto() -> str:
    """What each kind of network is in its own measure under the right reading and under auto."""
    rows = read_table(table_path("auto"))
    worst = max(rows, key=lambda row: float(row["worse_percent"]))
    same = sum(row["right_reading"] == row["auto_reading"] for row in rows)
    told = (
        f"Of {len(rows)} kinds auto reads {same} as they are meant; the worst, {worst['kind']}, is "
        f"**{float(worst['worse_percent']):.2f} %** worse than under the right reading."
    )
    lines = [
        [
            row["kind"],
            row["measure"],
            row["macs"],
            row["original"],
            row["right"],
            row["auto"],
            row["worse_percent"],
            _short_reading(row["auto_reading"]),
            "" if row["auto_reading"] == row["right_reading"] else _short_reading(row["right_reading"]),
        ]
        for row in rows
    ]
    heads = (
        "kind",
        "measure",
        "MACs",
        "original",
        "right",
        "auto",
        "worse, %",
        "auto reads",
        "right where other",
    )
    return f"{told}\n\n<details><summary>every kind</summary>\n\n{_table(heads, lines)}\n\n</details>"


def _short_reading(reading: str) -> str:
    """Families in their order, each run of equal ones once."""
    families = [part.rpartition(":")[2] for part in reading.split()]
    return ", ".join(
        family for index, family in enumerate(families) if index == 0 or families[index - 1] != family
    )


def agreement() -> str:
    """What is lost of the outputs beside the accuracy that is lost."""
    rows = sorted(read_table(table_path("agreement")), key=lambda row: float(row["lost"]))
    bounds = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 10.0)
    lines = []
    for low, high in itertools.pairwise(bounds):
        found = [row for row in rows if low <= float(row["lost"]) < high]
        if not found:
            continue
        points = [float(row["points_lost"]) for row in found]
        top1 = [100 * float(row["top1"]) for row in found]
        lines.append(
            [
                f"{low:g} to {high:g}" if high < bounds[-1] else f"above {low:g}",
                str(len(found)),
                f"{statistics.median(points):.1f} ({min(points):.1f} to {max(points):.1f})",
                f"{statistics.median(top1):.1f} ({min(top1):.1f} to {max(top1):.1f})",
                str(sum(row["warned"] == "1" for row in found)),
            ]
        )
    heads = ("lost", "results", "points of accuracy lost, median (range)", "same top-1, %", "with warning")
    return _table(heads, lines)


TABLES: Mapping[str, Callable[[], str]] = {
    table.__name__: table
    for table in (
        headline,
        accuracy,
        given,
        text,
        data,
        speed,
        phases,
        scores,
        growth,
        scale,
        large,
        gpu,
        ablation,
        methods,
        recovery,
        pruning,
        zoo,
        export,
        quantize,
        latency,
        by_time,
        budgets,
        latency_int8,
        auto,
        agreement,
    )
}


SOURCES = {
    "headline": "accuracy",
    "given": "accuracy",
    "phases": "speed",
    "scores": "speed-scores",
    "large": "scale",
    "by_time": "by-time",
    "latency_int8": "latency-int8",
}


def main() -> None:
    """Writes the pages anew."""
    pages = {path: path.read_text() for path in PAGES}
    for name, table in TABLES.items():
        start, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        path = next((path for path, page in pages.items() if start in page and end in page), None)
        if path is None:
            raise SystemExit(f"no page has the markers {start} and {end}")
        source = SOURCES.get(name, name)
        found = table() if name == "gpu" or read_table(table_path(source)) else ""
        if not found:
            print(f"{source}: no table yet")
            continue
        body = f"{start}\n{found}\n{end}"
        pages[path] = re.sub(
            f"{re.escape(start)}.*?{re.escape(end)}", lambda _, body=body: body, pages[path], flags=re.DOTALL
        )
    for path, page in pages.items():
        path.write_text(page)
        print(path)


if __name__ == "__main__":
    main()
