# SPDX-License-Identifier: Apache-2.0
"""Draws ``docs/figures/*.svg`` from the tables in ``benchmarks/results/``."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from benchmarks.tables import read_table, table_path

FIGURES = Path(__file__).parents[1] / "docs" / "figures"
NAMES = {"vgg": "VGG-like", "resnet": "ResNet-like", "mobilenet": "MobileNetV2-like", "vit": "ViT-like"}
# Colours that stay apart for colour-blind readers (Okabe and Ito).
WAYS = {
    "optimal": ("#0072B2", "-", "slimrank: no labels, no training"),
    "independent fits": ("#56B4E9", "--", "independent fits"),
    "without G": ("#009E73", "--", "without output gradients"),
    "uniform": ("#999999", ":", "one ratio for all layers"),
    "data-free": ("#CC79A7", ":", "weights only"),
    "AIMET spatial_svd": ("#D55E00", "-", "AIMET spatial SVD, 2,000 labels"),
    "AIMET weight_svd": ("#E69F00", "-", "AIMET weight SVD, 2,000 labels"),
}
Rows = Sequence[Mapping[str, str]]


def _save(name: str) -> None:
    plt.tight_layout()
    plt.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
    plt.close()


def _panels(count: int, width: float = 3.6) -> Sequence[Axes]:
    _, axes = plt.subplots(1, count, figsize=(width * count, 3.4), squeeze=False)
    panels: Sequence[Axes] = list(axes[0])
    return panels


def _lost_by(axes: Axes, network: str, what: str) -> None:
    """The look of a panel of points lost, by what is kept, from all on."""
    axes.set_yscale("symlog", linthresh=1)
    axes.set_ylim(0, 100)
    axes.set_title(NAMES[network])
    axes.set_xlabel(what)
    axes.invert_xaxis()


def accuracy() -> None:
    """Points lost by MACs kept, a panel for each network."""
    rows = read_table(table_path("accuracy"))
    panels = _panels(len(NAMES))
    for axes, network in zip(panels, NAMES, strict=True):
        for way, (colour, line, label) in WAYS.items():
            own = [
                row for row in rows if (row["network"], row["way"]) == (network, way) and row["points_lost"]
            ]
            own.sort(key=lambda row: float(row["macs_counted"]))
            axes.errorbar(
                [float(row["macs_counted"]) for row in own],
                [max(float(row["points_lost"]), 0.0) for row in own],
                yerr=[float(row["interval_95"]) for row in own],
                color=colour,
                linestyle=line,
                label=label,
                marker="o",
                markersize=3,
            )
        _lost_by(axes, network, "MACs kept (counted)")
    panels[0].set_ylabel("points of accuracy lost")
    panels[-1].legend(fontsize=6, loc="upper left")
    _save("accuracy")


def prediction() -> None:
    """Predicted against measured divergence of whole plans."""
    (axes,) = _panels(1, 4.2)
    rows = [row for row in read_table(table_path("accuracy")) if row.get("damage_predicted")]
    for way in ("optimal", "greedy", "uniform"):
        own = [row for row in rows if row["way"] == way]
        axes.scatter(
            [float(row["damage_predicted"]) for row in own],
            [float(row["divergence"]) for row in own],
            s=14,
            label=way,
        )
    axes.plot([3e-4, 10], [3e-4, 10], color="#999999", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("predicted by the plan (nats)")
    axes.set_ylabel("measured on held-out pictures (nats)")
    axes.legend(fontsize=7)
    _save("prediction")


def data() -> None:
    """Points lost by calibration pictures."""
    rows = read_table(table_path("data"))
    networks = [network for network in NAMES if any(row["network"] == network for row in rows)]
    for axes, network in zip(_panels(max(len(networks), 1)), networks, strict=False):
        by_count = defaultdict(list)
        for row in rows:
            if row["network"] == network and row["shift"] == "none":
                by_count[int(row["images"])].append(float(row["points_lost"]))
        counts = sorted(by_count)
        for count in counts:
            axes.scatter([count] * len(by_count[count]), by_count[count], s=10, color="#0072B2")
        means = [sum(by_count[count]) / len(by_count[count]) for count in counts]
        axes.plot(counts, means, color="#0072B2", label="pictures of the task")
        shifted = [row for row in rows if row["network"] == network and row["shift"] != "none"]
        for row, marker in zip(shifted, "sD^v", strict=False):
            axes.scatter(
                [int(row["images"])],
                [float(row["points_lost"])],
                marker=marker,
                label=f"shift: {row['shift']}",
            )
        axes.set_xscale("log", base=2)
        axes.set_yscale("symlog", linthresh=1)
        axes.set_title(f"{NAMES[network]}, half of the MACs")
        axes.set_xlabel("calibration pictures, unlabelled")
        axes.set_ylabel("points of accuracy lost")
        axes.legend(fontsize=6)
    _save("data")


def speed_rows(methods: str) -> list[dict[str, str]]:
    """Rows of the table of speed, of runs with the two SVD methods ("svd") or of the default call ("all")."""
    return [row for row in read_table(table_path("speed")) if row["methods"] == methods]


def speed() -> None:
    """Seconds beside AIMET, and where slimrank's go."""
    rows = speed_rows("svd")
    left, right = _panels(2, 5.4)
    labels = [f"{NAMES[row['network']]}\n{row['aimet_scheme'].replace('_', ' ')}" for row in rows]
    places = range(len(rows))
    left.bar(
        [p - 0.2 for p in places],
        [float(r["aimet_seconds"]) for r in rows],
        0.4,
        label="AIMET",
        color="#D55E00",
    )
    left.bar(
        [p + 0.2 for p in places], [float(r["seconds"]) for r in rows], 0.4, label="slimrank", color="#0072B2"
    )
    for place, row in zip(places, rows, strict=True):
        left.text(
            place, float(row["aimet_seconds"]), f"{float(row['times_faster']):.0f}x", ha="center", fontsize=8
        )
    left.set_yscale("log")
    left.set_ylabel("seconds")
    left.legend(fontsize=7)
    phases = [name for name in rows[0] if name.startswith("phase_")] if rows else []
    single = list({row["network"]: row for row in rows}.values())
    base = [0.0] * len(single)
    for phase in phases:
        heights = [float(row[phase] or 0) for row in single]
        right.bar(range(len(single)), heights, 0.6, bottom=base, label=phase.removeprefix("phase_"))
        base = [a + b for a, b in zip(base, heights, strict=True)]
    floors = [float(row["floor_seconds"]) for row in single]
    right.hlines(floors, [p - 0.4 for p in range(len(single))], [p + 0.4 for p in range(len(single))],
                 colors="black", label="one forward + backward")  # fmt: skip
    right.set_ylabel("seconds")
    right.legend(fontsize=7)
    left.set_xticks(list(places), labels, fontsize=6)
    right.set_xticks(range(len(single)), [NAMES[row["network"]] for row in single], fontsize=6)
    _save("speed")


def growth_rows(name: str) -> list[dict[str, str]]:
    """Rows of the table of growth with more blocks ("depth") or channels ("width"), of the default call."""
    other = {"depth": "width", "width": "depth"}[name]
    rows = [row for row in read_table(table_path("growth")) if row.get("methods") == "all"]
    return sorted((row for row in rows if row[other] == "1"), key=lambda row: int(row[name]))


def growth() -> None:
    """CPU seconds over the depth and the width of the network."""
    for axes, name in zip(_panels(2), ("depth", "width"), strict=True):
        own = [row for row in growth_rows(name) if row["cpu_seconds"]]
        sizes = [int(row[name]) for row in own]
        axes.plot(
            sizes,
            [float(row["cpu_seconds"]) for row in own],
            marker="o",
            color="#0072B2",
            label="study, plan and apply",
        )
        axes.plot(
            sizes,
            [float(row["floor_cpu_seconds"]) for row in own],
            linestyle=":",
            marker="o",
            color="#D55E00",
            label="one forward + backward",
        )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xticks(sizes, [f"x{size}" for size in sizes])
        axes.set_xlabel({"depth": "times as many blocks", "width": "times as many channels"}[name])
        axes.set_ylabel("CPU seconds")
        axes.legend(fontsize=7)
    _save("growth")


# Ways of the table of times.
TIMED = {
    "by time": ("#0072B2", "-", "slimrank, planned by time"),
    "by MACs": ("#56B4E9", "--", "slimrank, planned by MACs"),
    "by time, int8": ("#009E73", "-", "slimrank, planned by time in int8"),
    "AIMET spatial_svd": ("#D55E00", "-", "AIMET spatial SVD, 2,000 labels"),
    "AIMET weight_svd": ("#E69F00", "-", "AIMET weight SVD, 2,000 labels"),
    "Torch-Pruning magnitude": ("#999999", ":", "Torch-Pruning, magnitude"),
}


def _in_int8() -> Rows:
    """Rows of the table of int8 files, under the names of the table of times."""
    return [
        {**row, "way": "by time, int8", "time_measured": row["ratio"]}
        for row in read_table(table_path("latency-int8"))
        if row["file"] in ("original int8", "latency-planned int8")
    ]


def by_time() -> None:
    """Points lost by measured time, a panel for each network."""
    rows = [*read_table(table_path("by-time")), *_in_int8()]
    panels = _panels(len(NAMES))
    for axes, network in zip(panels, NAMES, strict=True):
        for way, (colour, line, label) in TIMED.items():
            own = [row for row in rows if row["network"] == network and row["way"] == way]
            own = sorted(
                (row for row in own if row["points_lost"]), key=lambda row: float(row["time_measured"])
            )
            axes.plot(
                [float(row["time_measured"]) for row in own],
                [max(float(row["points_lost"]), 0.0) for row in own],
                color=colour,
                linestyle=line,
                label=label,
                marker="o",
                markersize=3,
            )
        _lost_by(axes, network, "measured time kept")
    panels[0].set_ylabel("points of accuracy lost")
    panels[0].legend(fontsize=6, loc="upper left")
    _save("by_time")


PLOTS: Sequence[Callable[[], None]] = (accuracy, prediction, data, speed, growth, by_time)


def main() -> None:
    """Draws every figure."""
    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": "slimrank", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}
    FIGURES.mkdir(exist_ok=True)
    for plot in PLOTS:
        table = "accuracy" if plot is prediction else plot.__name__.replace("_", "-")
        if not read_table(table_path(table)):
            print(f"{table}: no table yet")
            continue
        plot()
        print(FIGURES / f"{plot.__name__}.svg")


if __name__ == "__main__":
    main()
