# SPDX-License-Identifier: Apache-2.0
import io
import logging

import pytest
import torch
from torch import Tensor, nn

from slimrank import BatchesError, ModelError, NonFiniteError, OutputError
from slimrank.capture import capture, check_compressible, count_cost, describe_layers
from slimrank.forward import as_batch, pick_outputs, tap_layers
from slimrank.surgery import copy_model, quiet_copy, replace_module

METHODS = ("weight_svd", "spatial_svd")


def read(model: nn.Module, raw: object, **options: object) -> object:
    chosen = {"methods": METHODS, "skip": (), "has_bias": True, **options}
    return capture(quiet_copy(model), as_batch(raw), **chosen)  # type: ignore[arg-type]


def conv_net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)
    ).eval()


def test_shapes_costs_and_order() -> None:
    captured = read(conv_net(), torch.randn(4, 3, 8, 8))
    first, last = captured.layers
    assert [spec.name for spec in captured.layers] == ["0", "3"]
    assert first.calls[0].input_shape == (1, 3, 8, 8)
    assert first.calls[0].output_shape == (1, 8, 4, 4)
    assert first.macs == 16 * 8 * 27
    assert first.params == 8 * 27 + 8
    assert last.macs == 1280
    assert first.methods == METHODS
    assert last.methods == ("weight_svd",)
    assert captured.before.macs == first.macs + last.macs
    assert captured.can_split
    assert captured.output_elements == 8 * 16 + 10


def test_tokens_count() -> None:
    captured = read(nn.Sequential(nn.Linear(8, 8)), torch.randn(2, 5, 8))
    assert captured.layers[0].macs == 5 * 64


def test_execution_order_is_not_the_order_of_names() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.b(x))

    assert [spec.name for spec in read(Backwards(), torch.randn(2, 8)).layers] == ["b", "a"]


def test_hooks_alone_where_the_export_fails() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.never_called = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if x.sum().item() < 1e9 else x

    captured = read(Branch(), torch.randn(2, 8))
    assert captured.layers[0].methods
    assert "torch.export failed" in captured.notes[0].text


def test_what_does_not_depend_on_single_samples_is_not_cut() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x - x.mean(0))

    captured = read(Centred(), torch.randn(4, 8))
    assert not captured.can_split
    assert captured.sample.n_samples == 4
    assert captured.layers[0].macs == 4 * 64


@pytest.mark.parametrize(
    ("layer", "raw", "reason"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), (8, 5, 5), "depthwise convolution"),
        (nn.Conv2d(8, 4, 1, groups=4), (8, 5, 5), "depthwise convolution"),
        (nn.Conv2d(8, 8, 1, groups=4), (8, 5, 5), "too small to gain: even rank 1 costs as much"),
        (nn.ConvTranspose2d(8, 8, 3), (8, 5, 5), "no method for ConvTranspose2d"),
        (nn.Linear(8, 1), (8,), "too small to gain: even rank 1 costs as much"),
    ],
)
def test_reasons(layer: nn.Module, raw: tuple[int, ...], reason: str) -> None:
    captured = read(nn.Sequential(layer), torch.randn(2, *raw))
    assert captured.layers[0].reason == reason
    assert captured.layers[0].methods == ()


@pytest.mark.parametrize("layer", [nn.Conv1d(4, 4, 3), nn.ConvTranspose1d(4, 4, 3)], ids=str)
def test_parametrised_layers_are_rows_with_a_cure(layer: nn.Module) -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(layer), nn.Conv1d(4, 2, 3)).eval()
    captured = read(model, torch.randn(2, 4, 9))
    reasons = {spec.name: spec.reason for spec in captured.layers}
    assert list(reasons) == ["0.parametrizations.weight", "0", "1"]
    for name in ("0.parametrizations.weight", "0"):
        assert "torch.nn.utils.parametrize.remove_parametrizations" in (reasons[name] or "")
    assert next(spec for spec in captured.layers if spec.name == "0").macs > 0


def test_time_first_outputs_are_told_how_to_turn() -> None:
    model = nn.Sequential(nn.Conv1d(4, 3, 3), _TimeFirst()).eval()
    (note,) = read(model, torch.randn(5, 4, 9)).notes
    assert "outputs=lambda out: out.transpose(0, 1)" in str(note)
    turned = read(model, torch.randn(5, 4, 9), outputs=lambda out: out.transpose(0, 1))
    assert turned.notes == ()
    assert turned.can_split


class _TimeFirst(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(2, 0, 1)


def test_a_weight_of_zeros_is_left_alone() -> None:
    model = conv_net()
    nn.init.zeros_(model[3].weight)
    assert read(model, torch.randn(2, 3, 8, 8)).layers[1].reason == "its weight is all zero"


def test_skip_comes_first() -> None:
    captured = read(conv_net(), torch.randn(2, 3, 8, 8), skip=("0",))
    assert captured.layers[0].reason == "skipped by the caller"


def test_errors() -> None:
    with pytest.raises(
        BatchesError, match=r"refuses the first batch \(Tensor\[\d, 4, 8, 8\]\): RuntimeError"
    ):
        read(conv_net(), torch.randn(2, 4, 8, 8))
    broken = conv_net()
    with torch.no_grad():
        broken[0].weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"0\.weight holds nan or inf"):
        read(broken, torch.randn(2, 3, 8, 8))
    with pytest.raises(ModelError, match=r"has no compressible layer \(1 x too small to gain"):
        check_compressible(read(nn.Sequential(nn.Linear(8, 1)), torch.randn(2, 8)).layers, nn.Sequential())


def test_describe_layers_runs_nothing_and_agrees() -> None:
    model = conv_net()
    described = {spec.name: spec for spec in describe_layers(model)}
    for spec in read(model, torch.randn(2, 3, 8, 8)).layers:
        other = described[spec.name]
        assert (other.kind, other.weight_shape, other.stride, other.padding) == (
            spec.kind,
            spec.weight_shape,
            spec.stride,
            spec.padding,
        )
        assert other.calls == ()


def test_shared_tensors_are_stored_once() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[1].weight = model[0].weight
    cost = count_cost(model, as_batch(torch.randn(1, 8)))
    assert (cost.macs, cost.params, cost.bytes) == (128, 64 + 16, 4 * 80)


def test_a_view_of_a_parameter_handed_to_a_module_is_counted() -> None:
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Parameter(torch.zeros(1, 4))
            self.fc = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.fc(self.token.expand(len(x), -1)).T

    model = Pooled()
    assert count_cost(model, as_batch(torch.randn(1, 3))).macs == 4 * 3 + 3
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_attention_products_are_counted() -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    assert count_cost(Attention(), as_batch(torch.randn(1, 2, 5, 4))).macs == 2 * 2 * 5 * 5 * 4


def test_replace_module_under_every_name() -> None:
    layer = nn.Linear(4, 4)
    model = nn.ModuleDict({"a": layer, "deep": nn.Sequential(nn.ReLU(), layer)})
    new = nn.Linear(4, 4)
    replace_module(model, "a", new)
    assert model["a"] is new
    assert model["deep"][1] is new


def test_copies_share_nothing() -> None:
    model = conv_net().train()
    quiet = quiet_copy(model)
    assert not quiet.training
    assert not any(p.requires_grad for p in quiet.parameters())
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in copy_model(model).parameters()
    }


def test_taps_see_calls_and_come_off() -> None:
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    seen: list[tuple[str, int]] = []

    def tap(name: str, call: int, _x: Tensor, y: Tensor) -> Tensor | None:
        seen.append((name, call))
        return y * 0 if call else None

    with tap_layers(model, ["0"], tap):
        assert not model(torch.randn(2, 4)).any()
    assert seen == [("0", 0), ("0", 1)]
    assert not layer._forward_hooks
    with pytest.raises(RuntimeError, match="stop"), tap_layers(model, ["0"], tap):
        raise RuntimeError("stop")
    assert not layer._forward_hooks


def test_pick_outputs() -> None:
    x, n = torch.randn(2, 3), torch.arange(2)
    assert list(pick_outputs(x, None)) == [""]
    assert list(pick_outputs({"logits": x, "hidden": x, "ids": n}, None)) == ["logits"]
    assert list(pick_outputs({"a": x, "ids": n}, None)) == ["a"]
    assert list(pick_outputs((x, n, [x]), None)) == ["0", "2.0"]
    assert pick_outputs((n, x), 1)["1"] is x
    assert pick_outputs((n, x), -1)["1"] is x
    assert pick_outputs({"a": x, "b": x + 1}, "b")["b"] is not x
    assert list(pick_outputs({"a": [x, x], "b": x, "c": x}, ["c", "a"])) == ["c", "a.0", "a.1"]
    assert list(pick_outputs({"a": [x, x], "b": x}, "a.1")) == ["a.1"]
    assert list(pick_outputs([x, n, x], [2, 0])) == ["2", "0"]
    assert list(pick_outputs(x, lambda out: {"twice": out * 2})) == ["twice"]
    with pytest.raises(
        OutputError, match=r"outputs='c': the model returns a dict, and 'c' is not in it; known are 'a'"
    ):
        pick_outputs({"a": x}, "c")
    with pytest.raises(OutputError, match=r"without a floating tensor that can be compared; pass outputs="):
        pick_outputs(n, None)


def test_a_failing_export_says_nothing_on_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    class Undecided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 8)
            self.never_called = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.b(y.relu() if y.sum() > 0 else y)

    # The logger of torch writes to the stderr of the moment of its import, which capfd may not see.
    torch_log, heard = logging.getLogger("torch"), io.StringIO()
    handler, level = logging.StreamHandler(heard), torch_log.level
    handler.setLevel(logging.WARNING)
    torch_log.addHandler(handler)
    try:
        captured = read(Undecided().eval(), torch.randn(1, 8))
    finally:
        torch_log.removeHandler(handler)
    assert "torch.export failed" in captured.notes[0].text
    assert tuple(capfd.readouterr()) == ("", "")
    assert heard.getvalue() == ""
    assert torch_log.level == level
