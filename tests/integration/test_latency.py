# SPDX-License-Identifier: Apache-2.0
"""Latency tables of a small network, measured in a runtime: stopped, gone on with, saved, refused."""

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import seams
import slimrank as sr
from invented_times import Machine, table_on
from slimrank.deploy import OpenFile, write_timed
from slimrank.forward import as_batch
from slimrank.latency import BACKENDS, Backend, build_variant, open_timed
from slimrank.plan import Plan, step_of
from slimrank.records import Setting

needs_onnx = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed")


@pytest.fixture(scope="module")
def measured(
    cnn_study: sr.Study, tmp_path_factory: pytest.TempPathFactory
) -> tuple[sr.Latencies, Path, list[int], list[int]]:
    """A table whose measurement was stopped after the first variant and then went on."""
    path = tmp_path_factory.mktemp("latency") / "table.json"
    with pytest.MonkeyPatch.context() as patch:
        seams.measure_fewer_variants(patch)
        first = seams.watch_variants(patch, stop_at=1)
        with pytest.raises(KeyboardInterrupt):
            sr.measure_latency(cnn_study, batch=4, path=path, progress=False)
        with pytest.raises(sr.LatencyError, match="stopped after 1 variants; go on with"):
            sr.Latencies.load(path)
    with pytest.MonkeyPatch.context() as patch:
        seams.measure_fewer_variants(patch)
        second = seams.watch_variants(patch)
        table = sr.measure_latency(cnn_study, batch=4, path=path, progress=False)
    return table, path, first, second


Measured = tuple[sr.Latencies, Path, list[int], list[int]]


@needs_onnx
def test_a_measurement_that_was_stopped_goes_on(measured: Measured) -> None:
    table, path, first, second = measured
    assert (len(first), len(second)) == (1, 2)
    assert len(seams.record_of(table).variants) == 3
    assert sr.Latencies.load(path) == table


@needs_onnx
def test_a_table_says_what_it_is_of(measured: Measured, cnn_study: sr.Study, tmp_path: Path) -> None:
    table, *_ = measured
    assert (table.backend, table.threads, table.batch, table.precision) == ("onnxruntime", 1, 4, "float32")
    assert set(table.times.layers) == {"stem", "conv", "last", "fc"}
    assert table.times.reference == pytest.approx(1e6 * table.before_ms)
    assert table.times.step in (4, 8, 16)
    assert "onnxruntime" in table.versions
    assert table.spread >= 0
    assert table.error > 0
    assert "cores" in table.machine
    text = table.summary()
    assert all(name in text for name in ("onnxruntime, float32, 1 thread, batch 4", "stem", "all else"))
    shown = table._repr_html_()
    assert all(f">{cell}</td>" in shown for cell in ("stem", "all else"))
    assert "onnxruntime, float32, 1 thread, batch 4" in shown
    assert repr(table).startswith("Latencies(onnxruntime, float32, threads 1, batch 4: ")
    table.save(tmp_path / "copy.json")
    assert sr.Latencies.load(tmp_path / "copy.json") == table
    table.check(cnn_study.structure)


@needs_onnx
def test_predictions_fall_with_what_is_left(measured: Measured, cnn_study: sr.Study) -> None:
    table, *_ = measured
    nothing = Plan(steps=(), before=cnn_study.before, has_bias=True)
    assert table.predict(nothing) == table.before_ms
    empty = Plan.manual(cnn_study, {})
    assert table.predict(empty) == pytest.approx(table.times.before / 1e6)
    wide, narrow = (
        table.predict(Plan.manual(cnn_study, {"stem": ("channel_pruning", {"keep": 16})})),
        table.predict(Plan.manual(cnn_study, {"conv": ("channel_pruning", {"keep": 8})})),
    )
    assert narrow <= wide <= table.predict(empty) + 1e-12
    with pytest.raises(sr.OptionError, match="plan is a dict; give a Plan"):
        table.predict({})  # type: ignore[arg-type]


@needs_onnx
def test_a_table_of_another_network_is_named(measured: Measured, nets: ModuleType) -> None:
    table, path, *_ = measured
    other = sr.study(nets.mlp(), nets.noise(24), data_free=True, progress=False)
    for refused in (lambda: table.check(other.structure), lambda: table.predict(Plan.manual(other, {}))):
        with pytest.raises(sr.LatencyError, match="with other sizes of the inputs and layers; measure one"):
            refused()
    with pytest.raises(sr.LatencyError, match=r"table.json: it was measured with other .*layers"):
        sr.measure_latency(other, batch=4, path=path, progress=False)


@needs_onnx
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"machine": "abacus, 1 cores, wood"}, r"machine \('abacus, 1 cores, wood' there, "),
        ({"versions": {"onnxruntime": "0.1"}}, r"version of onnxruntime \(0.1 there, "),
        ({"batch": 7}, r"batch \(7 there, 4 here\)"),
        ({"backend": "openvino"}, r"backend \('openvino' there, 'onnxruntime' here\)"),
        ({"precision": "int8"}, r"precision \('int8' there, 'float32' here\)"),
        ({"threads": 2}, r"threads \(2 there, 1 here\)"),
    ],
)
def test_a_table_of_other_conditions_is_named(
    measured: Measured, cnn_study: sr.Study, tmp_path: Path, change: Mapping[str, object], told: str
) -> None:
    content = json.loads(measured[1].read_text())
    content["conditions"] |= change
    path = tmp_path / "other.json"
    path.write_text(json.dumps(content))
    with pytest.raises(sr.LatencyError, match=told):
        sr.measure_latency(cnn_study, batch=4, path=path, progress=False)


@needs_onnx
@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda content: content.update(format=9), "format 9, this version reads 2"),
        (lambda content: content.update(more=1), "unknown key 'more'"),
        (lambda content: content["result"]["times"].update(fixed=-1.0), r"fixed is -1.0; give ns, 0 or more"),
        (
            lambda content: content["variants"][0]["settings"].update(fc=["weight_svd", "v_h", 2]),
            "'weight_svd' 'v_h' is no way to split a layer",
        ),
        (lambda content: content["variants"][0]["settings"].update(fc=[2]), "write .method, form, rank."),
        (
            lambda content: content["result"]["times"]["layers"]["fc"]["pairs"].update(lineal={}),
            "linear",
        ),
    ],
)
def test_a_spoilt_file_is_refused(
    measured: Measured, tmp_path: Path, spoil: Callable[[dict[str, object]], None], told: str
) -> None:
    content = json.loads(measured[1].read_text())
    spoil(content)
    path = tmp_path / "spoilt.json"
    path.write_text(json.dumps(content))
    with pytest.raises(sr.LatencyError, match=told):
        sr.Latencies.load(path)


@needs_onnx
def test_noise_is_told_and_widens_the_error(measured: Measured, cnn_study: sr.Study) -> None:
    record = seams.record_of(measured[0])
    three = seams.finished_table(record, cnn_study.structure, (*cnn_study.methods, "tucker2"), None)
    assert any("'tucker2': three factors are not timed" in note.text for note in three.notes)
    quiet, noisy = (
        seams.finished_table(
            replace(record, variants=tuple(replace(entry, spread=spread) for entry in record.variants)),
            cnn_study.structure,
            cnn_study.methods,
            None,
        )
        for spread in (0.02, 0.5)
    )
    assert not any(note.is_warning for note in quiet.notes)
    assert not any("three factors" in note.text for note in quiet.notes)
    # Such a small network is over in microseconds.
    assert any("give a larger batch=" in note.text for note in quiet.notes)
    assert noisy.error == pytest.approx(quiet.error + 0.25)
    (note,) = (note for note in noisy.notes if note.is_warning)
    assert "spread by 50%: the machine did other work" in note.text
    assert note.text in noisy.summary()


@needs_onnx
def test_what_slows_one_precision_more_for_a_while_leaves_the_formulas_alone(
    measured: Measured, cnn_study: sr.Study, tmp_path: Path
) -> None:
    record = seams.record_of(measured[0])

    def table_of(*states: float) -> sr.Latencies:
        """Of variants in a precision that takes 0.5 of the original, times the state of the machine."""
        variants = tuple(
            replace(entry, ratio=entry.ratio * state, standing_ratio=0.5 * state)
            for entry, state in zip(record.variants, states, strict=True)
        )
        path = tmp_path / "table.json"
        kept = replace(record, variants=variants)
        table = seams.finished_table(kept, cnn_study.structure, cnn_study.methods, path)
        assert sr.Latencies.load(path) == table
        return table

    quiet, shaken = table_of(1.0, 1.0, 1.0), table_of(0.9, 1.0, 1.2)
    assert seams.record_of(shaken).variants[0].standing_ratio == pytest.approx(0.45)
    assert shaken.predict(Plan.manual(cnn_study, {})) == pytest.approx(
        quiet.predict(Plan.manual(cnn_study, {}))
    )
    assert shaken.times.layers["conv"].dense.per_product == pytest.approx(
        quiet.times.layers["conv"].dense.per_product
    )
    # A model is measured in one of these states.
    assert shaken.error == pytest.approx(quiet.error + 0.15)


@needs_onnx
def test_profiles_that_were_disturbed_are_told_and_double_the_error(
    measured: Measured, cnn_study: sr.Study
) -> None:
    record = seams.record_of(measured[0])

    def table_of(share: float) -> sr.Latencies:
        """Of runs of 10 ms, of which the nodes take a share by their profile."""
        variants = tuple(
            replace(
                entry,
                before_ms=10.0,
                spread=0.0,
                parts=entry.parts.scaled(share * 1e7 * entry.ratio / entry.parts.total),
            )
            for entry in record.variants
        )
        original = record.original.scaled(share * 1e7 / record.original.total)
        return seams.finished_table(
            replace(record, original=original, variants=variants),
            cnn_study.structure,
            cnn_study.methods,
            None,
        )

    quiet, disturbed = table_of(0.95), table_of(1.4)
    assert quiet.notes == ()
    (note,) = disturbed.notes
    assert note.is_warning
    assert "add up to 140% of whole times: the machine did other work" in note.text
    # Profiles are brought to whole times, so the formulas are the same.
    assert disturbed.error == pytest.approx(2 * quiet.error, rel=0.05)


@pytest.mark.parametrize(
    ("options", "error", "told"),
    [
        ({"backend": "onxruntime"}, sr.UnknownNameError, "'onxruntime'; .*onnxruntime"),
        ({"backend": "tensorrt"}, sr.UnknownNameError, "'tensorrt'; known are .*'torch-compile'"),
        ({"precision": "int9"}, sr.UnknownNameError, "'int9'; .*int8"),
        ({"batch": 0}, sr.OptionError, "batch=0; give a whole number from 1 on"),
        ({"threads": True}, sr.OptionError, "threads=True; give a whole number"),
    ],
)
def test_options_that_cannot_be(
    cnn_study: sr.Study, options: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        sr.measure_latency(cnn_study, progress=False, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("backend", "extra"), [("onnxruntime", "export"), ("openvino", "openvino"), ("executorch", "executorch")]
)
def test_a_runtime_that_is_missing_is_named_with_the_line_for_pip(
    cnn_study: sr.Study, nets: ModuleType, monkeypatch: pytest.MonkeyPatch, backend: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, backend, None)
    line = rf"{backend}.*pip install 'slimrank\[{extra}\]'"
    with pytest.raises(sr.MissingPackageError, match=line):
        sr.measure_latency(cnn_study, backend=backend, progress=False)
    # Before anything is studied or built.
    with pytest.raises(sr.MissingPackageError, match=line):
        sr.compress(nets.cnn(), "no batches", latency=0.6, backend=backend, progress=False)
    monkeypatch.setattr(type(cnn_study), "apply", None)
    table = table_on(cnn_study.structure, Machine(), backend=backend)
    with pytest.raises(sr.MissingPackageError, match=line):
        sr.meet_latency(cnn_study, 0.9, latencies=table)


@needs_onnx
def test_files_that_cannot_be_are_refused_before_all_work(cnn_study: sr.Study, tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no" / "table.json"):
        with pytest.raises(sr.FileError, match="cannot be written; give a file in an existing folder"):
            sr.measure_latency(cnn_study, path=path, progress=False)
    with pytest.raises(sr.OptionError, match="study is a str"):
        sr.measure_latency("study", progress=False)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("format", "quantize", "package"),
    [
        ("onnx", None, "onnxruntime"),
        ("onnx", "int8", "onnxruntime"),
        ("openvino", None, "openvino"),
        ("openvino", "int8", "nncf"),
        ("executorch", None, "executorch"),
    ],
)
def test_nodes_of_a_file_are_those_of_its_layers(
    cnn_study: sr.Study, format: str, quantize: str | None, package: str, tmp_path: Path
) -> None:
    pytest.importorskip(package)
    pairs = {
        "conv": Setting(method="spatial_svd", form="v_h", rank=8),
        "fc": Setting(method="weight_svd", form="linear", rank=4),
    }
    variant = step_of(cnn_study.structure, pairs)
    network = build_variant(seams.original_of(cnn_study), variant, has_bias=True, seed=0)
    batch = as_batch(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))
    file = write_timed(
        network, [batch], tmp_path / "file", format=format, batch=4, threads=1, quantize=quantize
    )
    assert file.batch == 4
    nodes = file.nodes()
    parts = seams.parts_of(nodes, variant)
    assert set(parts.factors) == {"stem", "conv", "last", "fc"}
    assert {name: len(times) for name, times in parts.factors.items() if name in pairs} == {
        "conv": 2,
        "fc": 2,
    }
    assert all(time > 0 for times in parts.factors.values() for time in times)
    if quantize is not None:
        words = {"onnx": ("Conv", "Gemm"), "openvino": ("Conv", "FullyConnected")}[format]
        products = [node for node in nodes if any(word in node.kind for word in words)]
        assert len(products) == 6
        if format == "onnx":
            # Their kernels are those of int8, a pair's second rounding within them.
            assert all("QLinear" in node.kind or "QGemm" in node.kind for node in products)


def _within_reach(table: sr.Latencies) -> sr.Latencies:
    """The table, with an original that took longer: noise of a small network must not hide all savings."""
    return replace(table, times=replace(table.times, reference=1.1 * table.times.before))


@pytest.mark.slow
def test_a_table_of_pytorch_itself_keeps_budgets_in_pytorch(
    cnn_study: sr.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    seams.measure_fewer_variants(monkeypatch)
    table = sr.measure_latency(cnn_study, backend="torch", batch=4, progress=False)
    assert (table.backend, table.versions) == ("torch", {"torch": torch.__version__})
    assert len(seams.record_of(table).variants) == 3
    assert set(table.times.layers) == {"stem", "conv", "last", "fc"}
    result = sr.meet_latency(cnn_study, 0.95, latencies=_within_reach(table), rounds=1)
    assert result.latency is not None
    assert result.latency.before_ms > 0
    assert "latency (torch, float32, batch 4, threads 1)" in result.summary()


@pytest.mark.slow
def test_a_table_of_a_runtime_that_tells_whole_times_only(
    cnn_study: sr.Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    opened = BACKENDS["torch"].open

    def whole(*args: object, **options: object) -> OpenFile:
        file = opened(*args, **options)  # type: ignore[arg-type]
        return OpenFile(run=file.run, batch=file.batch)

    seams.invent_backend(monkeypatch, "abacus", Backend(open=whole, parts_of="torch"))
    seams.measure_fewer_variants(monkeypatch)
    timed = seams.watch_variants(monkeypatch)
    path = tmp_path / "table.json"
    table = sr.measure_latency(cnn_study, backend="abacus", batch=4, path=path, progress=False)
    # Whole times tell less than times of parts, so there are more.
    assert len(timed) == 6
    assert set(table.times.layers) == {"stem", "conv", "last", "fc"}
    assert any(
        "abacus tells whole times only: formulas of layers are those of 'torch', scaled to 7" in note.text
        for note in table.notes
    )
    again = sr.measure_latency(cnn_study, backend="abacus", batch=4, path=path, progress=False)
    assert len(timed) == 6
    assert (again.error, again.times.before) == pytest.approx((table.error, table.times.before))
    result = sr.meet_latency(cnn_study, 0.95, latencies=_within_reach(table), rounds=1)
    assert result.latency is not None


@pytest.mark.slow
# Of torch's own compiler.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_compiled_transformers_are_timed_as_a_whole_and_in_parts(nets: ModuleType, tmp_path: Path) -> None:
    model = nets.Encoder().eval()
    batches = [as_batch(batch) for batch in nets.noise(6, 24, n=2)]
    file = open_timed("torch-compile", model, batches, tmp_path / "file", batch=8, threads=1)
    file.run()
    assert file.batch == 8
    modules = {node.module for node in file.nodes()}
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    assert any(name in modules for name in layers)


def test_a_machine_without_a_gpu_is_told(cnn_study: sr.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(
        sr.OptionError, match="backend='cuda': torch finds no GPU on this machine; measure where"
    ):
        sr.measure_latency(cnn_study, backend="cuda", progress=False)


@pytest.mark.slow
@needs_onnx
def test_a_file_of_another_batch_only_is_named(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(24, 24)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.view(8, 24)).relu()

    study = sr.study(Fixed().eval(), [torch.randn(8, 24)], data_free=True, progress=False)
    with pytest.raises(sr.SlimrankError, match=r"batch=3: .* takes batches of \d only; give batch=\d"):
        sr.measure_latency(study, batch=3, progress=False)


@pytest.fixture(scope="module")
def in_int8(cnn_study: sr.Study, tmp_path_factory: pytest.TempPathFactory) -> tuple[sr.Latencies, Path]:
    """A table of int8 files, whose measurement was stopped after the network as it stands."""
    path = tmp_path_factory.mktemp("int8") / "table.json"
    with pytest.MonkeyPatch.context() as patch:
        seams.measure_fewer_variants(patch)
        with pytest.MonkeyPatch.context() as stopped:
            seams.watch_variants(stopped, stop_at=1)
            with pytest.raises(KeyboardInterrupt):
                sr.measure_latency(cnn_study, batch=4, precision="int8", path=path, progress=False)
        timed = seams.watch_variants(patch)
        table = sr.measure_latency(cnn_study, batch=4, precision="int8", path=path, progress=False)
    assert len(timed) == 3
    return table, path


@pytest.mark.slow
@needs_onnx
def test_a_table_of_int8_files_tells_ratios_to_the_float_original(
    in_int8: tuple[sr.Latencies, Path], cnn_study: sr.Study
) -> None:
    table, path = in_int8
    assert table.precision == "int8"
    assert sr.Latencies.load(path) == table
    # The network as it stands comes first, and nothing is done to it.
    whole, *variants = seams.record_of(table).variants
    assert (whole.settings, whole.kept, whole.dropped) == ({}, {}, ())
    assert len(variants) == 3
    assert all((variant.standing_ratio or 0) > 0 for variant in (whole, *variants))
    assert table.times.reference == pytest.approx(1e6 * table.before_ms)
    assert table.times.before != pytest.approx(table.times.reference, rel=1e-3)
    as_it_stands = table.times.before / 1e6
    assert table.predict(Plan.manual(cnn_study, {})) == pytest.approx(as_it_stands)
    assert table.predict(Plan(steps=(), before=cnn_study.before, has_bias=True)) == pytest.approx(
        as_it_stands
    )
    assert f"batch 4: {as_it_stands:.3f} ms, {table.before_ms:.3f} ms in float32" in table.summary()
    assert repr(table).startswith("Latencies(onnxruntime, int8, threads 1, batch 4: ")


@pytest.mark.slow
@needs_onnx
def test_a_table_of_another_precision_is_named(
    in_int8: tuple[sr.Latencies, Path], cnn_study: sr.Study
) -> None:
    with pytest.raises(sr.LatencyError, match=r"precision \('int8' there, 'float32' here\)"):
        sr.measure_latency(cnn_study, batch=4, path=in_int8[1], progress=False)


def test_int8_that_cannot_be_measured_is_refused(
    cnn_study: sr.Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("openvino") is not None:
        monkeypatch.setitem(sys.modules, "nncf", None)
        with pytest.raises(sr.MissingPackageError, match=r"nncf.*pip install 'slimrank\[openvino\]'"):
            sr.measure_latency(cnn_study, backend="openvino", precision="int8", progress=False)
    with pytest.raises(sr.OptionError, match="int8 files of backend='torch' are not measured; give 'onnx"):
        sr.measure_latency(cnn_study, backend="torch", precision="int8", progress=False)


@pytest.mark.slow
@needs_onnx
def test_a_table_of_int8_files_from_the_command_line(
    in_int8: tuple[sr.Latencies, Path], cnn_study: sr.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnn_study.save(tmp_path / "run")
    path = tmp_path / "table.json"
    path.write_bytes(in_int8[1].read_bytes())
    seams.measure_fewer_variants(monkeypatch)
    net = Path(__file__).parent / "nets.py"
    command = ["latency", str(tmp_path / "run"), "--model", f"{net}:cnn", "--out", str(path), "--batch", "4"]
    done = CliRunner().invoke(seams.cli, [*command, "--quiet", "--precision", "int8"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "onnxruntime, int8, 1 thread, batch 4" in done.stdout


@needs_onnx
def test_a_table_from_the_command_line(
    measured: Measured, cnn_study: sr.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cnn_study.save(tmp_path / "run")
    net = Path(__file__).parent / "nets.py"
    path = tmp_path / "table.json"
    path.write_bytes(measured[1].read_bytes())
    seams.measure_fewer_variants(monkeypatch)
    command = ["latency", str(tmp_path / "run"), "--model", f"{net}:cnn", "--out", str(path), "--batch", "4"]
    done = CliRunner().invoke(seams.cli, [*command, "--quiet"], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "onnxruntime, float32, 1 thread, batch 4" in done.stdout
    assert f"Kept in {path}." in done.stdout
    wrong = CliRunner().invoke(seams.cli, [*command, "--backend", "openvimo"])
    assert wrong.exit_code == 2
    assert "openvino" in wrong.stderr
    facts = json.loads(CliRunner().invoke(seams.cli, [*command, "--quiet", "--json"]).stdout)
    assert facts["conditions"]["batch"] == 4
