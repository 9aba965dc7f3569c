# SPDX-License-Identifier: Apache-2.0
"""Compressing, then training: with labels, without, after each layer, after a kill, on a GPU."""

import copy
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import slimrank as sr
from slimrank.recover import Epoch

LOSS = nn.CrossEntropyLoss()
# Layers keep their widths, so that their outputs can be told from the teacher's.
FACTORS = ("weight_svd", "spatial_svd")
Snapshot = Callable[[nn.Module], object]


def net(nets: ModuleType, seed: int = 0) -> nn.Module:
    """Random weights, but answers that differ from picture to picture."""
    layers = [
        nn.Conv2d(1, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1),
        nn.BatchNorm2d(24),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(24 * 16, 10),
    ]
    return nets.settle(nn.Sequential(*layers).eval(), seed)


def same_state(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


@pytest.fixture
def images(nets: ModuleType) -> list[Tensor]:
    return nets.noise(1, 8, 8, n=10, size=32)


@pytest.fixture
def labelled(images: list[Tensor], nets: ModuleType) -> list[tuple[Tensor, Tensor]]:
    """What the original network says is right."""
    with torch.no_grad():
        return [(x, net(nets)(x).argmax(1)) for x in images]


@pytest.fixture
def damaged(images: list[Tensor], nets: ModuleType) -> sr.Result:
    study = sr.study(net(nets), images[:3], methods=FACTORS, progress=False)
    return study.apply(study.plan(macs=0.25))


def right(model: nn.Module, labelled: list[tuple[Tensor, Tensor]]) -> float:
    with torch.no_grad():
        return float(torch.cat([model(x).argmax(1) == y for x, y in labelled]).float().mean())


def held_out_divergence(model: nn.Module, teacher: nn.Module, batches: list[Tensor]) -> float:
    seen: list[Epoch] = []
    sr.distill(
        model, teacher, batches, lr=1e-12, likelihood="categorical", on_epoch=seen.append, progress=False
    )
    return seen[0].held_out_before


@pytest.mark.parametrize("norms", ["frozen", "reestimated"])
def test_distilling_wins_back_what_compression_lost(
    norms: str, damaged: sr.Result, images: list[Tensor], nets: ModuleType, snapshot: Snapshot
) -> None:
    teacher = net(nets)
    before = snapshot(teacher), snapshot(damaged.model), torch.get_rng_state()
    tuned = sr.distill(
        damaged.model,
        teacher,
        images,
        epochs=6,
        lr=3e-3,
        likelihood="categorical",
        norms=norms,  # type: ignore[arg-type]
        features=["0", "3"],
        progress=False,
    )
    assert before[:2] == (snapshot(teacher), snapshot(damaged.model))
    assert torch.equal(before[2], torch.get_rng_state())
    lost, left = (held_out_divergence(m, teacher, images) for m in (damaged.model, tuned))
    assert left < 0.9 * lost
    same_norm = torch.equal(tuned[4].running_var, damaged.model[4].running_var)
    assert same_norm is (norms == "frozen")


def test_labels_win_back_accuracy(damaged: sr.Result, labelled: list[tuple[Tensor, Tensor]]) -> None:
    tuned = sr.finetune(damaged.model, labelled, LOSS, epochs=6, lr=3e-3, progress=False)
    assert right(tuned, labelled) > right(damaged.model, labelled) + 0.05
    again = damaged.with_model(tuned)
    assert again.model is tuned
    assert again.after == damaged.after


def test_after_each_layer(
    images: list[Tensor], labelled: list[tuple[Tensor, Tensor]], nets: ModuleType
) -> None:
    study = sr.study(net(nets), images[:3], methods=FACTORS, progress=False)
    plan = study.plan(macs=0.25)
    seen: dict[str, list[Epoch]] = {}

    def tune(model: nn.Module, name: str) -> None:
        own = seen.setdefault(name, [])
        assert (
            sr.finetune(model, labelled, LOSS, lr=3e-3, in_place=True, on_epoch=own.append, progress=False)
            is model
        )

    plain, tuned = study.apply(plan), study.apply(plan, on_layer=tune)
    assert list(seen) == list(plan.settings)
    assert tuned.after == plan.after
    assert right(tuned.model, labelled) > right(plain.model, labelled)
    assert not any(module.training for module in tuned.model.modules())
    assert all(parameter.requires_grad for parameter in tuned.model.parameters())
    # What is fitted later starts from what was trained before.
    assert not torch.equal(tuned.model[4].weight, plain.model[4].weight)


def test_after_each_layer_without_labels(images: list[Tensor], nets: ModuleType) -> None:
    model = net(nets)
    study = sr.study(model, images[:3], methods=FACTORS, progress=False)
    plan = study.plan(macs=0.25)

    def tune(part: nn.Module, _name: str) -> None:
        sr.distill(part, model, images, lr=3e-3, in_place=True, progress=False)

    plain, tuned = study.apply(plan), study.apply(plan, on_layer=tune)
    lost, left = (held_out_divergence(result.model, model, images) for result in (plain, tuned))
    assert left < lost


@pytest.mark.parametrize("lr", [1e3, 1e8])
def test_never_worse_than_what_came_in(
    lr: float, damaged: sr.Result, labelled: list[tuple[Tensor, Tensor]], nets: ModuleType
) -> None:
    tuned = sr.finetune(damaged.model, labelled, LOSS, epochs=2, lr=lr, progress=False)
    assert same_state(tuned, damaged.model)
    images = [x for x, _ in labelled]
    assert same_state(
        sr.distill(damaged.model, net(nets), images, lr=lr, norms="reestimated", progress=False),
        damaged.model,
    )


# --- inputs and outputs of other shapes ---


def bert(labels: int, seed: int, nets: ModuleType) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        num_labels=labels,
    )
    return nets.settle(transformers.BertForTokenClassification(config), seed).eval()


def padded(nets: ModuleType, padding: int) -> list[dict[str, Tensor]]:
    batches = []
    for ids in nets.tokens(length=8, size=6, n=4):
        mask = torch.ones_like(ids)
        mask[::2, 5:] = 0
        batches.append({"input_ids": ids.masked_fill(mask == 0, padding), "attention_mask": mask})
    return batches


@pytest.mark.filterwarnings("ignore")
def test_padding_tokens_teach_nothing(nets: ModuleType) -> None:
    teacher = bert(5, 0, nets)
    runs = []
    for padding in (0, 37):
        model = copy.deepcopy(teacher)
        with torch.no_grad():
            model.classifier.weight.mul_(0.5)
        seen: list[Epoch] = []
        tuned = sr.distill(
            model,
            teacher,
            padded(nets, padding),
            epochs=2,
            lr=1e-3,
            features=["bert.encoder.layer.0.output"],
            on_epoch=seen.append,
            progress=False,
        )
        runs.append((seen, tuned.classifier.weight.detach()))
    (one, w), (other, v) = runs
    assert one[-1].held_out_loss < one[-1].held_out_before
    for a, b in zip(one, other, strict=True):
        assert a.training_loss == pytest.approx(b.training_loss, rel=1e-3)
        assert a.held_out_loss == pytest.approx(b.held_out_loss, rel=1e-3)
    torch.testing.assert_close(w, v, rtol=0, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_a_model_that_computes_its_own_loss(nets: ModuleType) -> None:
    model = bert(5, 0, nets)
    batches = [{**b, "labels": b["input_ids"] % 5} for b in padded(nets, 0)]
    seen: list[Epoch] = []
    sr.finetune(
        model,
        batches,
        lambda out, _: out.loss,
        inputs=lambda b: b,
        targets=lambda _b: None,
        epochs=3,
        lr=3e-3,
        on_epoch=seen.append,
        progress=False,
    )
    assert seen[-1].held_out_loss < seen[-1].held_out_before


def test_several_inputs(nets: ModuleType) -> None:
    model = nets.settle(nets.TwoInputs()).eval()
    a, b = nets.noise(24, n=4), nets.noise(16, n=4, seed=1)
    for inputs in (list(zip(a, b, strict=True)), [{"a": x, "b": y} for x, y in zip(a, b, strict=True)]):
        other = nets.settle(nets.TwoInputs(), seed=3).eval()
        assert held_out_divergence(model, other, inputs) > 0
        tuned = sr.distill(model, other, inputs, epochs=3, lr=1e-2, progress=False)
        assert held_out_divergence(tuned, other, inputs) < held_out_divergence(model, other, inputs)


def test_a_loader_that_shuffles(damaged: sr.Result, labelled: list[tuple[Tensor, Tensor]]) -> None:
    data = TensorDataset(torch.cat([x for x, _ in labelled[:8]]), torch.cat([y for _, y in labelled[:8]]))
    chance = torch.get_rng_state()

    def tuned() -> nn.Module:
        loader = DataLoader(data, batch_size=32, shuffle=True)
        return sr.finetune(
            damaged.model, loader, LOSS, epochs=2, lr=3e-3, holdout=labelled[8:], progress=False
        )

    assert same_state(tuned(), tuned())
    assert torch.equal(chance, torch.get_rng_state())
    with pytest.raises(sr.BatchesError, match="differs from what the first pass gave"):
        sr.finetune(damaged.model, DataLoader(data, batch_size=32, shuffle=True), LOSS, progress=False)


# --- resume ---


@pytest.mark.parametrize("way", ["finetune", "distill", "reestimated", "past its best"])
def test_an_interrupted_run_ends_bit_for_bit_the_same(
    way: str, damaged: sr.Result, labelled: list[tuple[Tensor, Tensor]], nets: ModuleType, tmp_path: Path
) -> None:
    def run(run_dir: Path | None, on_epoch: Callable[[Epoch], None]) -> nn.Module:
        if way == "distill":
            return sr.distill(
                damaged.model,
                net(nets),
                [x for x, _ in labelled],
                epochs=4,
                lr=1e-2,
                run_dir=run_dir,
                on_epoch=on_epoch,
                progress=False,
            )
        return sr.finetune(
            damaged.model,
            labelled,
            LOSS,
            epochs=4,
            # Worse after the first epochs: then the best state is not the last.
            lr=3e-2 if way == "past its best" else 1e-2,
            schedule="constant" if way == "past its best" else "cosine",
            norms="reestimated" if way == "reestimated" else "frozen",
            run_dir=run_dir,
            on_epoch=on_epoch,
            progress=False,
        )

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    history: list[Epoch] = []
    rest: list[Epoch] = []
    whole = run(None, history.append)
    assert way != "past its best" or not history[-1].is_best
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop)
    resumed = run(tmp_path, rest.append)
    assert same_state(resumed, whole)
    assert [epoch.epoch for epoch in rest] == [3, 4]
    for a, b in zip(history[2:], rest, strict=True):
        assert (a.training_loss, a.held_out_loss, a.is_best) == (b.training_loss, b.held_out_loss, b.is_best)
    rest.clear()
    assert same_state(run(tmp_path, rest.append), whole)
    assert rest == []


@pytest.mark.slow
def test_a_killed_process_goes_on(nets: ModuleType, environment: Mapping[str, str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import time, torch
torch.set_num_threads(1)
import nets
import slimrank as sr
sr.distill(nets.settle(nets.cnn(), 1), nets.cnn(), nets.noise(1, 8, 8), epochs=40, lr=1e-2, run_dir="run",
    progress=False, on_epoch=lambda epoch: time.sleep(0.3))
"""
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("run/recover-[23456].safetensors")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL

    def run(run_dir: Path | None, told: list[int]) -> nn.Module:
        return sr.distill(
            nets.settle(nets.cnn(), 1),
            nets.cnn(),
            nets.noise(1, 8, 8),
            epochs=40,
            lr=1e-2,
            run_dir=run_dir,
            progress=False,
            on_epoch=lambda epoch: told.append(epoch.epoch),
        )

    rest: list[int] = []
    resumed = run(tmp_path / "run", rest)
    assert 1 < rest[0] < 9
    assert rest == list(range(rest[0], 41))
    assert same_state(resumed, run(None, []))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("weights", "weights"),
        ("data", "data"),
        ("labels", "data"),
        ("epochs", "options"),
        ("optimizer", "options"),
        ("loss", "loss_fn"),
        ("trainable", "modules"),
    ],
)
def test_a_run_directory_is_tied_to_its_run(
    change: str, words: str, nets: ModuleType, tmp_path: Path
) -> None:
    pairs = [(x, torch.zeros(8, dtype=torch.int64)) for x in nets.noise(24)]

    def run(model: nn.Module, **options: object) -> nn.Module:
        loss_fn = options.pop("loss_fn", LOSS)
        return sr.finetune(model, pairs, loss_fn, run_dir=tmp_path, progress=False, **options)  # type: ignore[arg-type]

    run(nets.mlp())
    model = nets.mlp()
    options: dict[str, object] = {}
    if change == "weights":
        model[0].bias.data[0] += 1e-3
    elif change == "data":
        pairs[-1][0][-1, -1] += 1e-3
    elif change == "labels":
        pairs[-1][1][-1] += 1
    elif change == "trainable":
        model[0].requires_grad_(requires_grad=False)
    else:
        options = {
            "epochs": {"epochs": 2},
            "optimizer": {"optimizer": torch.optim.SGD},
            "loss": {"loss_fn": nn.CrossEntropyLoss(label_smoothing=0.1)},
        }[change]
    with pytest.raises(
        sr.StudyError, match=rf"a training run of other {words}; give another run_dir or delete"
    ):
        run(model, **options)


def test_another_teacher_or_kind_is_another_run(nets: ModuleType, tmp_path: Path) -> None:
    model, data = nets.mlp(), nets.noise(24)
    other = nets.settle(nets.mlp(), 5)
    sr.distill(model, other, data, run_dir=tmp_path, progress=False)
    with pytest.raises(sr.StudyError, match="of other teacher; give"):
        sr.distill(model, nets.settle(nets.mlp(), 6), data, run_dir=tmp_path, progress=False)
    with pytest.raises(sr.StudyError, match="of other objective; give"):
        sr.distill(
            model, other, data, temperature=2.0, likelihood="categorical", run_dir=tmp_path, progress=False
        )
    pairs = [(x, torch.zeros(8, dtype=torch.int64)) for x in data]
    with pytest.raises(sr.StudyError, match="of other kind and data and loss_fn; give"):
        sr.finetune(model, pairs, LOSS, run_dir=tmp_path, progress=False)


# --- GPU ---


@pytest.mark.gpu
@pytest.mark.parametrize("norms", ["frozen", "reestimated"])
def test_on_a_gpu(norms: str, nets: ModuleType, tmp_path: Path) -> None:
    model = net(nets, 1).to("cuda")
    teacher = net(nets)
    images = nets.noise(1, 8, 8, n=6, size=32)
    with torch.no_grad():
        pairs = [(x, teacher(x).argmax(1)) for x in images]
    chance, own = torch.cuda.get_rng_state(), torch.get_rng_state()
    for way in ("distill", "finetune"):
        seen: list[Epoch] = []
        options = {"epochs": 4, "lr": 1e-2, "norms": norms, "run_dir": tmp_path / way, "progress": False}
        tuned = (
            sr.distill(model, teacher, images, on_epoch=seen.append, **options)  # type: ignore[arg-type]
            if way == "distill"
            else sr.finetune(model, pairs, LOSS, on_epoch=seen.append, **options)  # type: ignore[arg-type]
        )
        assert min(epoch.held_out_loss for epoch in seen) < seen[0].held_out_before
        assert {p.device.type for p in tuned.parameters()} == {"cuda"}
        # A finished run is read back.
        again = (
            sr.distill(model, teacher, images, **options)  # type: ignore[arg-type]
            if way == "distill"
            else sr.finetune(model, pairs, LOSS, **options)  # type: ignore[arg-type]
        )
        assert same_state(again, tuned)
    assert torch.equal(chance, torch.cuda.get_rng_state())
    assert torch.equal(own, torch.get_rng_state())
    assert {p.device.type for p in teacher.parameters()} == {"cpu"}
