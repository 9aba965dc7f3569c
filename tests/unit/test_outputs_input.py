# SPDX-License-Identifier: Apache-2.0
"""Every wrong ``outputs=``, ``likelihood=``, ``weights=`` and ``loss=`` is a clear error of the library's."""

from collections import UserDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import slimrank as sr


class Net(nn.Module):
    """One network, and what it returns of its output as the test wants it."""

    def __init__(self, returns: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.first, self.second, self.returns = nn.Linear(12, 24), nn.Linear(24, 16), returns
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        self.eval()

    def forward(self, x: Tensor) -> object:
        return self.returns(self.second(self.first(x).relu()))


def one(y: Tensor) -> object:
    return y


def two(y: Tensor) -> object:
    return y[:, :6], y[:, 6:]


def named(y: Tensor) -> object:
    parts = [y[:, :6], y[:, 6:]]
    return {"scores": y[:, :1], "boxes": y[:, 6:], "parts": parts, "mask": y > 0, "inner": {"0": y[:, :6]}}


class Holder:
    def __init__(self, y: Tensor) -> None:
        self.boxes = y


class Indexed(UserDict[str, Tensor]):
    """Keys and indices both lead to its values, as in what models of transformers return."""

    def __init__(self, boxes: Tensor) -> None:
        super().__init__(boxes=boxes)

    def to_tuple(self) -> tuple[Tensor, ...]:
        return tuple(self.values())

    def __getitem__(self, key: object) -> Tensor:
        return self.to_tuple()[key] if isinstance(key, int) else self.data[str(key)]


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(8, 12, generator=generator) for _ in range(2)]


def refused(
    error: type[sr.SlimrankError], words: str, returns: Callable[[Tensor], object], **options: object
) -> None:
    with pytest.raises(sr.SlimrankError, match=words) as caught:
        sr.study(Net(returns), data(), progress=False, **options)  # type: ignore[arg-type]
    assert type(caught.value) is error


_FORMS = r"; give a key, an index, a list of them, or a function of what the model returns"


@pytest.mark.parametrize(
    ("returns", "outputs", "error", "words"),
    [
        (one, 0, sr.OutputError, r"outputs=0: the model returns one tensor \[\d+, 16\], so 0 names none of"),
        (one, 99, sr.OutputError, r"so 99 names none of several outputs; leave outputs= out, or give a func"),
        (one, "logits", sr.OutputError, r"so 'logits' names none of several outputs"),
        (one, ["logits"], sr.OutputError, r"outputs=\['logits'\]: the model returns one tensor"),
        (two, 2, sr.OutputError, r"outputs=2: 2 is out of range, .* a tuple of 2; give indices from 0 to 1"),
        (two, -3, sr.OutputError, r"-3 is out of range, the model returns a tuple of 2"),
        (two, [0, 5], sr.OutputError, r"outputs=\[0, 5\]: 5 is out of range"),
        (two, "boxes", sr.OutputError, r"a tuple of 2, without keys; give indices from 0 to 1"),
        (two, "0.1", sr.OutputError, r"a tuple of 2, without keys"),
        (named, "boxs", sr.OutputError, r"a dict, and 'boxs' is not in it; did you mean 'boxes'\?"),
        (named, ["boxes", "score"], sr.OutputError, r"'score' is not in it; did you mean 'scores'\?"),
        (named, "nothing_like_it", sr.OutputError, r"known are 'scores', 'boxes', 'parts', 'mask', 'inner'"),
        (named, "parts.7", sr.OutputError, r"'parts.7' is not in it; did you mean 'parts.\d'"),
        (named, "boxes.0", sr.OutputError, r"'boxes.0' is not in it; did you mean 'boxes'"),
        (named, 0, sr.OutputError, r"a dict with 'scores', .*, which has no entry 0; give a key"),
        (named, "mask", sr.OutputError, r"outputs='mask' picks one tensor \[\d+, 16\] of torch.bool without"),
        (Holder, "boxs", sr.OutputError, r"a Holder, and 'boxs' is not in it; did you mean 'boxes'\?"),
        (Holder, 0, sr.OutputError, r"a Holder with 'boxes', which has no entry 0; give a key"),
        (Indexed, 1, sr.OutputError, r"1 is out of range, .* Indexed with 'boxes'; give indices from 0 to 0"),
        (two, [], sr.OptionError, r"outputs is empty; name at least one output, or leave it out"),
        (two, (), sr.OptionError, r"outputs is empty"),
        (two, [0, 0], sr.OptionError, r"outputs=\[0, 0\] names an output twice; name each once"),
        (two, [0, -2], sr.OptionError, r"outputs=\[0, -2\] names an output twice"),
        (named, ["parts", "parts.0"], sr.OptionError, r"names an output twice"),
        (two, 1.5, sr.OptionError, r"outputs=1\.5" + _FORMS),
        (two, True, sr.OptionError, r"outputs=True" + _FORMS),
        (two, b"x", sr.OptionError, r"outputs=b'x'" + _FORMS),
        (two, {0}, sr.OptionError, r"outputs=\{0\}" + _FORMS),
        (two, {"0": 1}, sr.OptionError, r"outputs=\{'0': 1\}" + _FORMS),
        (two, [[0]], sr.OptionError, r"outputs=\[\[0\]\]" + _FORMS),
        (two, lambda: 0, sr.OutputError, r"outputs= failed on what the model returned, a tuple of 2 \(TypeE"),
        (two, lambda out: out["a"], sr.OutputError, r"\(TypeError: tuple indices .*give a function of it"),
        (two, lambda out: out.a, sr.OutputError, r"\(AttributeError"),
        (two, lambda out: out[0].view(7, 5), sr.OutputError, r"\(RuntimeError: shape"),
        (two, lambda _out: 1 // 0, sr.OutputError, r"\(ZeroDivisionError"),
        (two, lambda _out: None, sr.OutputError, r"outputs=function picks a NoneType without a floating"),
        (two, lambda out: out[0].argmax(1), sr.OutputError, r"of torch.int64 without a floating tensor"),
        (two, lambda out: out[0].numpy(), sr.OutputError, r"a ndarray without a floating|RuntimeError"),
        (two, lambda out: out[0].detach(), sr.GradientError, r"no gradient flows from the outputs"),
    ],
)
def test_outputs(
    returns: Callable[[Tensor], object], outputs: object, error: type[sr.SlimrankError], words: str
) -> None:
    refused(error, words, returns, outputs=outputs)


_FAMILIES = r"'auto', 'categorical', 'bernoulli', 'gaussian'"


@pytest.mark.parametrize(
    ("returns", "likelihood", "error", "words"),
    [
        (one, "poisson", sr.OptionError, rf"likelihood='poisson'; it is one of {_FAMILIES}"),
        (one, None, sr.OptionError, rf"likelihood=None; give one of {_FAMILIES}, a dict from outputs"),
        (one, {"gaussian"}, sr.OptionError, r"likelihood=\{'gaussian'\}; give one of"),
        (one, b"gaussian", sr.OptionError, r"likelihood=b'gaussian'; give one of"),
        (one, {"0": "gaussian"}, sr.OptionError, r"is for several outputs, .* without a name; give one fam"),
        (
            one,
            ["gaussian"],
            sr.OptionError,
            r"is for several outputs, and there is one tensor without a name",
        ),
        (two, ["gaussian"], sr.OptionError, r"likelihood has 1 entries for 2 outputs \('0', '1'\); give one"),
        (two, ["auto"] * 3, sr.OptionError, r"likelihood has 3 entries for 2 outputs"),
        (two, ["auto", "poisson"], sr.OptionError, r"likelihood\[1\]='poisson'; it is one of"),
        (two, {"1": "poisson"}, sr.OptionError, r"likelihood\['1'\]='poisson'; it is one of"),
        (two, {}, sr.OptionError, r"likelihood is empty; name at least one output, or leave it out"),
        (two, [], sr.OptionError, r"likelihood is empty"),
        (
            two,
            {"2": "gaussian"},
            sr.UnknownNameError,
            r"likelihood: there is no output '2'; known are '0', '",
        ),
        (named, {"boxs": "auto"}, sr.UnknownNameError, r"there is no output 'boxs'; did you mean 'boxes'\?"),
        (named, {"mask": "auto"}, sr.UnknownNameError, r"there is no output 'mask'"),
        (
            named,
            {"scores": "categorical"},
            sr.OutputError,
            r"output scores is \[\d+, 1\]: categorical needs a",
        ),
    ],
)
def test_likelihood(
    returns: Callable[[Tensor], object], likelihood: object, error: type[sr.SlimrankError], words: str
) -> None:
    refused(error, words, returns, likelihood=likelihood)


@pytest.mark.parametrize(
    ("returns", "weights", "error", "words"),
    [
        (
            two,
            {"0": 0},
            sr.OptionError,
            r"weights\['0'\]=0; give a positive number \(an output that does not",
        ),
        (two, {"0": -1.0}, sr.OptionError, r"weights\['0'\]=-1\.0; give a positive number"),
        (two, {"0": float("nan")}, sr.OptionError, r"=nan; give a positive number"),
        (two, {"0": float("inf")}, sr.OptionError, r"=inf; give a positive number"),
        (two, {"0": "much"}, sr.OptionError, r"weights\['0'\]='much'; give a positive number"),
        (two, {"0": "2"}, sr.OptionError, r"weights\['0'\]='2'; give a positive number"),
        (two, {"0": None}, sr.OptionError, r"weights\['0'\]=None; give a positive number"),
        (two, {"0": True}, sr.OptionError, r"weights\['0'\]=True; give a positive number"),
        (two, [1, 0], sr.OptionError, r"weights\[1\]=0; give a positive number"),
        (
            two,
            [1],
            sr.OptionError,
            r"weights has 1 entries for 2 outputs \('0', '1'\); give one for each, or",
        ),
        (two, [1, 2, 3], sr.OptionError, r"weights has 3 entries for 2 outputs"),
        (two, {}, sr.OptionError, r"weights is empty; name at least one output, or leave it out"),
        (two, "2", sr.OptionError, r"weights='2'; give a dict from outputs to positive numbers, or a list"),
        (two, 2.0, sr.OptionError, r"weights=2\.0; give a dict from outputs"),
        (two, torch.ones(2), sr.OptionError, r"weights=tensor\(.*give a dict from outputs"),
        (two, {"boxes": 1}, sr.UnknownNameError, r"weights: there is no output 'boxes'; known are '0', '1'"),
        (
            named,
            {"boxs": 1},
            sr.UnknownNameError,
            r"weights: there is no output 'boxs'; did you mean 'boxes'",
        ),
        (one, {"0": 2}, sr.OptionError, r"is for several outputs, .* without a name; leave it out"),
        (one, [2], sr.OptionError, r"is for several outputs, and there is one tensor without a name"),
    ],
)
def test_weights(
    returns: Callable[[Tensor], object], weights: object, error: type[sr.SlimrankError], words: str
) -> None:
    refused(error, words, returns, weights=weights)


def squares(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().sum(1)


def test_weights_beside_a_loss() -> None:
    words = r"weights= and loss= are given; a loss of your own weighs outputs itself, so leave weights= out"
    refused(sr.OptionError, words, two, weights=[1, 2], loss=lambda a, b: squares(a[0], b[0]))


def _in_place_on_the_way(a: Tensor, b: Tensor) -> Tensor:
    y = (a - b).exp()
    losses = y.square().sum(1)
    y += 1
    return losses


class FailsLater:
    """A loss that fails once it is given more than the outputs of the first batch."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        self.calls += 1
        if self.calls > 40:
            raise ValueError("too late")
        return squares(a, b)


_NO_GRADIENT = r"no gradient flows from loss= to the outputs .* use differentiable operations of torch"


@pytest.mark.parametrize(
    ("loss", "error", "words"),
    [
        (
            "mse",
            sr.OptionError,
            r"loss is a str; give a function loss\(outputs, original_outputs\) of \(N,\)",
        ),
        (3, sr.OptionError, r"loss is a int; give a function"),
        (lambda a: a, sr.OptionError, r"loss cannot be called with two values \(too many"),
        (lambda a, b, c: a, sr.OptionError, r"loss cannot be called with two values \(missing .*'c'"),
        (lambda a, b: 1 // 0, sr.OptionError, r"loss= failed \(ZeroDivisionError: .*called with a tensor \["),
        (
            lambda a, b: (a @ b.new_zeros(99, 1)).sum(1),
            sr.OptionError,
            r"loss= failed \(RuntimeError: mat1 and mat2",
        ),
        (lambda a, b: a.boxes - b.boxes, sr.OptionError, r"loss= failed \(AttributeError"),
        (FailsLater(), sr.OptionError, r"loss= failed \(ValueError: too late\)"),
        (
            lambda a, b: squares(a, b).mean(),
            sr.OptionError,
            r"returned \[\] for \d+ samples; .*leave the mean",
        ),
        (
            nn.L1Loss(reduction="none"),
            sr.OptionError,
            r"return one loss for each, .* e.g. with .flatten\(1\).mean\(1\)",
        ),
        (nn.MSELoss(), sr.OptionError, r"loss= returned \[\] for \d+ samples; return one loss for each"),
        (lambda a, b: squares(a, b)[:2], sr.OptionError, r"loss= returned \[2\] for \d+ samples"),
        (lambda a, b: (a - b).square(), sr.OptionError, r"loss= returned \[\d+, 16\] for \d+ samples"),
        (
            lambda a, b: (a != b).sum(1),
            sr.OptionError,
            r"loss= returned torch\.int64; return floating numbers",
        ),
        (
            lambda a, b: (a != b).any(1),
            sr.OptionError,
            r"loss= returned torch\.bool; return floating numbers",
        ),
        (
            lambda a, b: squares(a, b).detach().numpy(),
            sr.OptionError,
            r"loss= returned ndarray for \d+ sampl",
        ),
        (
            lambda a, b: np.zeros(len(a)),
            sr.OptionError,
            r"loss= returned ndarray for \d+ samples; return one",
        ),
        (lambda a, b: float(squares(a, b).sum()), sr.OptionError, r"loss= returned float for \d+ samples"),
        (lambda a, b: None, sr.OptionError, r"loss= returned NoneType for \d+ samples"),
        (lambda a, b: (a.argmax(1) != b.argmax(1)).float(), sr.GradientError, _NO_GRADIENT),
        (lambda a, b: squares(a.detach(), b), sr.GradientError, _NO_GRADIENT),
        (torch.no_grad()(squares), sr.GradientError, _NO_GRADIENT),
        (lambda a, b: torch.ones(len(a)), sr.GradientError, _NO_GRADIENT),
        (lambda a, b: 0 * a.sum(1), sr.GradientError, r"loss= has no curvature: its gradient is the same"),
        (lambda a, b: (a - b).sum(1), sr.GradientError, r"loss= has no curvature"),
        (_in_place_on_the_way, sr.GradientError, r"the backward pass through loss= failed .*none in place"),
        (lambda a, b: squares(a.sub_(b), b), sr.OptionError, r"loss= changes the outputs .*not a\.sub_\(b\)"),
        (lambda a, b: squares(a, b.mul_(2)), sr.OptionError, r"loss= changes the outputs that it is given"),
        (
            torch.cosine_similarity,
            sr.OptionError,
            r"loss= is largest where .*as a similarity is; .*1 minus a",
        ),
        (lambda a, b: -squares(a, b), sr.OptionError, r"loss= is largest where the outputs are the original"),
        (
            lambda a, b: squares(a, b).log(),
            sr.NonFiniteError,
            r"loss= returned nan or inf on outputs close to",
        ),
        (
            lambda a, b: torch.where((a == b).all(1), squares(a, b), squares(a, b) / 0),
            sr.NonFiniteError,
            r"loss= returned nan or inf on outputs close to the original's; check where it divides",
        ),
    ],
)
def test_loss(loss: object, error: type[sr.SlimrankError], words: str) -> None:
    refused(error, words, one, loss=loss)


def test_a_loss_is_told_what_it_is_called_with() -> None:
    words = r"loss= failed \(KeyError: 0\); it is called with a dict with 'scores', 'boxes', 'parts', 'mask'"
    refused(sr.OptionError, words, named, loss=lambda a, b: squares(a[0], b[0]))
    words = r"loss= failed \(TypeError: .* called with a tuple, twice: what outputs= picks"
    refused(sr.OptionError, words, two, loss=squares)


def test_a_study_with_a_loss_is_not_loaded_without(tmp_path: Path) -> None:
    sr.study(Net(one), data(), loss=squares, progress=False).save(tmp_path)
    assert sr.Study.load(tmp_path).plan(macs=0.9).damage is not None
    with pytest.raises(sr.StudyError, match=r"made with loss=, a function that no file can keep; pass the"):
        sr.Study.load(tmp_path, model=Net(one))
    words = r"was made of other outputs \(which ones, or their likelihood, weights or loss\)"
    with pytest.raises(sr.StudyError, match=words):
        sr.Study.load(tmp_path, model=Net(one), loss=lambda a, b: 2 * squares(a, b))
    assert sr.Study.load(tmp_path, model=Net(one), loss=squares).unit == "loss per sample"


@pytest.mark.parametrize("sizes", [(0, 0, 0), (3, 0, 2), (0, 3, 2)])
def test_outputs_without_values_are_no_obstacle(sizes: tuple[int, ...]) -> None:
    class Boxes(Net):
        def forward(self, x: Tensor) -> object:
            y = self.second(self.first(x).relu())
            return {"y": y.mean(1), "boxes": y[:, 1:]}

    generator = torch.Generator().manual_seed(1)
    batches = [torch.randn(12, 1 + size, 12, generator=generator) for size in sizes]
    study = sr.study(Boxes(one), batches, methods=("weight_svd",), progress=False)
    result = study.apply(study.plan(macs=0.7))
    assert result.divergence is not None
    assert 0 < result.divergence < 1
    if not any(sizes):
        assert any("'boxes' [0, 16]: gaussian, it holds no values" in note.text for note in study.notes)


def test_masks_that_leave_no_token_are_refused() -> None:
    class Text(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 4)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
            return self.head(self.embed(input_ids))

    batches = [{"input_ids": torch.zeros(6, 5, dtype=torch.long), "attention_mask": torch.zeros(6, 5)}] * 3
    with pytest.raises(
        sr.BatchesError,
        match=r"output of the model: the masks leave no token that counts; an attention_mask has 1",
    ):
        sr.study(Text(), batches, progress=False)
