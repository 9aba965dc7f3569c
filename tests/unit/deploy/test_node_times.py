# SPDX-License-Identifier: Apache-2.0
"""Which product a value comes from, and runs that are compared in turns."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

import seams
import slimrank as sr

GRAPH = {
    "conv": seams.GraphNode(module="conv", inputs=("images",), is_product=True, has_weight=True),
    "relu": seams.GraphNode(module="", inputs=("conv",)),
    "fc": seams.GraphNode(module="fc", inputs=("relu",), is_product=True, has_weight=True),
    "scores": seams.GraphNode(module="attn", inputs=("fc", "conv"), is_product=True),
    "softmax": seams.GraphNode(module="attn", inputs=("scores",)),
    "sum": seams.GraphNode(module="", inputs=("softmax", "relu")),
}


def test_the_nearest_product_is_found_through_other_operations() -> None:
    assert seams.nearest_product(GRAPH, "relu") == "conv"
    assert seams.nearest_product(GRAPH, "conv") == "conv"
    assert seams.nearest_product(GRAPH, "softmax") == "scores"
    assert seams.nearest_product({"x": seams.GraphNode(module="", inputs=())}, "x") is None


def test_sources_are_the_nearest_products_with_weights() -> None:
    assert seams.sources_of(GRAPH, "relu") == ("conv",)
    assert seams.sources_of(GRAPH, "sum") == ("conv", "fc")
    assert seams.sources_of(GRAPH, "fc") == ("conv",)


def test_the_time_of_a_node_is_one_that_a_fifth_of_its_runs_stay_below() -> None:
    assert seams.profile_time([9.0, 1.0, 2.0, 3.0, 4.0, 5.0]) == 2.0


@pytest.mark.parametrize(
    ("micro", "expected"),
    [
        # The first two runs warm up; one was interrupted.
        ((900, 400, 310, 300, 3305, 300, 302, 300), (310, 300, 3305, 300, 302, 300)),
        # A microsecond that is lost of eight runs is much of one of them.
        ((90, 40, 11, 12, 11, 12, 11, 12), (11.5,)),
    ],
)
def test_single_runs_come_out_of_averages_in_whole_microseconds(
    micro: tuple[int, ...], expected: tuple[float, ...]
) -> None:
    averages = [sum(micro[:count]) // count * 1e-6 for count in range(1, len(micro) + 1)]
    found = seams.single_runs(averages)
    assert len(found) == len(expected)
    lost = 1.5 if len(found) == 1 else len(micro)
    assert all(abs(1e6 * one - other) <= lost for one, other in zip(found, expected, strict=True))


# What OpenVINO makes of GRAPH: a transposition before the scores, and a change of layout behind it.
COMPILED = ["images", "conv/Convolution", "Transpose_{0}", "Transpose_{1}", "fc/MatMul", "scores/MatMul"]


def test_names_that_openvino_numbers_are_the_same_each_time() -> None:
    names = [
        seams.stable_names([name.format(first, first + 41) for name in COMPILED], GRAPH)
        for first in (45311, 57704)
    ]
    assert names[0]["conv/Convolution"] == "conv/Convolution"
    assert names[0]["Transpose_45311"] == names[1]["Transpose_57704"] == "Transpose #0"
    assert names[0]["Transpose_45352"] == names[1]["Transpose_57745"] == "Transpose #1"
    assert [*names[0].values()] == [*names[1].values()]


def test_what_openvino_puts_in_belongs_behind_what_it_reads() -> None:
    inputs = {
        "conv/Convolution": ("images",),
        "Transpose #0": ("conv/Convolution",),
        "Transpose #1": ("Transpose #0",),
        "Reorder #0": ("scores/MatMul",),
        "Reorder #1": ("images",),
        "scores/MatMul": ("Transpose #1", "fc/MatMul"),
    }
    runs = {(name, "kind"): 1e-4 for name in inputs}
    # Compiled twice, and each run as long as the others: so are the averages.
    found = {node.name: node for node in seams.node_times([[runs] * 4, [runs] * 4], inputs, GRAPH)}
    assert [*found] == [*inputs]
    assert all(node.nanoseconds == pytest.approx(1e5, rel=0.02) for node in found.values())
    assert (found["conv/Convolution"].module, found["conv/Convolution"].sources) == ("conv", ())
    assert not found["conv/Convolution"].is_beside
    # Beside the convolution, whose channels it moves, not inside of it.
    for name in ("Transpose #0", "Transpose #1"):
        assert (found[name].module, found[name].sources, found[name].is_beside) == ("conv", ("conv",), True)
    # The scores are no layer: what follows them is in the same module.
    assert (found["Reorder #0"].module, found["Reorder #0"].sources) == ("attn", ("conv", "fc"))
    assert (found["Reorder #1"].module, found["Reorder #1"].sources) == ("", ())
    assert not found["Reorder #0"].is_beside
    assert not found["Reorder #1"].is_beside


def test_a_change_of_layout_bears_the_name_of_what_it_follows() -> None:
    runs = {("conv_abcd_acdb_fc", "Reorder"): 1e-4, ("conv/Convolution_acdb_abcd", "Reorder"): 1e-4}
    inputs = {"conv_abcd_acdb_fc": ("images",), "conv/Convolution_acdb_abcd": ("conv/Convolution",)}
    first, second = seams.node_times([[runs] * 4], inputs, GRAPH)
    assert (first.module, first.is_beside) == ("", False)
    assert (second.module, second.sources, second.is_beside) == ("conv", ("conv",), True)


@dataclass(frozen=True)
class Event:
    """An event as ExecuTorch's tracer has it."""

    name: str | None
    delegate_debug_id_str: str | None
    start_time: int
    end_time: int


def trace(*, scale: int = 1, fc: str = "Fully Connected (NC, F32) GEMM #1") -> list[Event]:
    """A run of the graph: the first product and what follows it in one delegate, the second in another."""

    def event(name: str | None, inner: str | None, time: int) -> Event:
        return Event(name, inner, 1000, 1000 + scale * time)

    return [
        event(None, "Transpose (ND, X32) #1", 5),
        event(None, "Convolution (NHWC, F32) IGEMM #1", 100),
        event(None, "Clamp (NC) #1", 7),
        event("DELEGATE_CALL", None, 112),
        event("native_call_slice_copy.Tensor_out", None, 9),
        event("OPERATOR_CALL", None, 10),
        event("OPERATOR_CALL", None, 1),
        event(None, fc, 60),
        event(None, "Batch Matrix Multiply (NC, F32) GEMM #1", 30),
        event(None, "Softmax (NC, F32) #1", 8),
        event("DELEGATE_CALL", None, 98),
        event("Method::execute", None, 250),
    ]


def test_the_trace_of_executorch_is_read_in_the_order_of_the_graph() -> None:
    # Runs that were interrupted do not count; XNNPACK's times are cut off to whole microseconds.
    times = seams.trace_times([trace(), trace(), trace(scale=50)], GRAPH)
    assert [(node.kind, node.module, node.nanoseconds) for node in times] == [
        ("Transpose (ND, X32)", "", 505.0),
        ("Convolution (NHWC, F32) IGEMM", "conv", 600.0),
        ("Clamp (NC)", "", 507.0),
        ("native_call_slice_copy.Tensor_out", "", 9.0),
        ("OPERATOR_CALL", "", 1.0),
        ("Fully Connected (NC, F32) GEMM", "fc", 560.0),
        # What has no weight belongs to what comes last before the next product with one.
        ("Batch Matrix Multiply (NC, F32) GEMM", "", 530.0),
        ("Softmax (NC, F32)", "", 508.0),
    ]
    assert [node.sources for node in times[:4]] == [(), (), ("conv",), ("conv",)]
    assert times[5].sources == ("conv",)
    assert times[-1].sources == ("conv", "fc")


def test_products_outside_xnnpack_are_told() -> None:
    outside = trace(fc="native")
    with pytest.raises(
        sr.ExportError, match="has 1 products with weights, and the program has 2: some run outside"
    ):
        seams.trace_times([outside, outside], GRAPH)


class Machine:
    """Two clocks that runs put forward."""

    def __init__(self) -> None:
        self.wall = self.processor = 0.0

    def run(self, work: float, waits: Iterator[float], threads: int = 1) -> Callable[[], None]:
        def step() -> None:
            self.wall += work + next(waits)
            self.processor += threads * work

        return step


def endless(*values: float) -> Iterator[float]:
    while True:
        yield from values


@pytest.mark.parametrize(
    ("threads", "busy", "ratio"),
    [
        # One thread: other work on the machine stretches the clock alone.
        (1, 1, 0.5),
        # Several, or a second one that waits busily: the clock counts.
        (2, 2, 0.55 / 1.05),
        (1, 2, 0.55 / 1.05),
    ],
)
def test_runs_in_turns_are_compared(threads: int, busy: int, ratio: float) -> None:
    machine = Machine()
    compared = seams.compare_in_turns(
        machine.run(1.0, endless(0.05), busy),
        machine.run(0.5, endless(0.05), busy),
        threads=threads,
        seconds=0.1,
        clocks=(lambda: machine.wall, lambda: machine.processor),
    )
    assert compared.ratio == pytest.approx(ratio)
    assert compared.spread == pytest.approx(0.0, abs=1e-9)
    assert compared.after.milliseconds / compared.before.milliseconds == pytest.approx(ratio)


def test_caches_that_another_run_left_do_not_count() -> None:
    now, before_that = [0.0], [""]

    def run(name: str, seconds: float) -> Callable[[], None]:
        def one() -> None:
            # What it finds in the caches is its own from the third time on.
            is_warm = before_that[0].endswith(2 * name)
            now[0] += seconds if is_warm else 1.5 * seconds
            before_that[0] += name

        return one

    compared = seams.compare_in_turns(
        run("a", 0.004), run("b", 0.003), threads=2, seconds=0.1, clocks=(lambda: now[0], lambda: now[0])
    )
    assert compared.before.milliseconds == pytest.approx(4)
    assert compared.after.milliseconds == pytest.approx(3)
    assert compared.ratio == pytest.approx(0.75)
    assert "aab" in before_that[0]


@pytest.mark.parametrize("seconds", [15.0, 300.0])
def test_turns_that_other_work_disturbed_do_not_count(seconds: float) -> None:
    machine = Machine()
    # Three turns of five are slow, and slow the two unlike. Short seconds leave the fewest turns.
    slowed = [0.0, 0.4, 0.0, 0.4, 0.4]
    compared = seams.compare_in_turns(
        machine.run(1.0, endless(*slowed)),
        machine.run(0.5, (wait / 4 for wait in endless(*slowed))),
        threads=2,
        seconds=seconds,
        clocks=(lambda: machine.wall, lambda: machine.processor),
    )
    assert compared.ratio == pytest.approx(0.5)
    assert (compared.before.milliseconds, compared.after.milliseconds) == pytest.approx((1000, 500))
    # That the machine was busy is told all the same.
    assert compared.spread > 0.1


def test_all_turns_count_where_nothing_disturbed_them() -> None:
    machine = Machine()
    # Slower and faster alike: the quietest turns alone would be those in which the first run was fast.
    compared = seams.compare_in_turns(
        machine.run(1.0, endless(-0.02, -0.01, 0.0, 0.01, 0.02)),
        machine.run(0.5, endless(0.0)),
        threads=2,
        seconds=300.0,
        clocks=(lambda: machine.wall, lambda: machine.processor),
    )
    assert compared.ratio == pytest.approx(0.5)


def test_a_clock_of_the_processor_that_ticks_coarsely_is_not_used() -> None:
    machine = Machine()
    tick = 1 / 64
    compared = seams.compare_in_turns(
        machine.run(0.1, endless(0.0)),
        machine.run(0.005, endless(0.0)),
        threads=1,
        seconds=1.0,
        clocks=(lambda: machine.wall, lambda: tick * int(machine.processor / tick)),
    )
    assert compared.ratio == pytest.approx(0.05)


def test_runs_that_take_long_are_not_repeated_untimed() -> None:
    now, order = [0.0], []

    def run(name: str, seconds: float) -> Callable[[], None]:
        def one() -> None:
            order.append(name)
            now[0] += seconds

        return one

    compared = seams.compare_in_turns(
        run("a", 1.0), run("b", 0.1), threads=2, seconds=0.1, clocks=(lambda: now[0], lambda: now[0])
    )
    assert compared.ratio == pytest.approx(0.1)
    # Three turns before any is timed, and the first that is, whose run may still be a short one.
    assert order[:6] == ["a", "b"] * 3
    assert order[6:10] == ["a", "a", "b", "b"]
    assert order[10:] == ["a", "b", "b"] * 9
