# SPDX-License-Identifier: Apache-2.0
"""Every bad input is a clear error: where, what is allowed, what to do; each also of a standard type."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr


def net() -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 16)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator))
    return model


def data(n: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(6, 12, generator=generator) for _ in range(n)]


@pytest.fixture(scope="module")
def study() -> sr.Study:
    return sr.study(net(), data(), progress=False)


STANDARD: dict[type[sr.SlimrankError], type[Exception]] = {
    sr.BatchesError: ValueError,
    sr.BatchesTypeError: TypeError,
    sr.BudgetError: ValueError,
    sr.DeviceError: RuntimeError,
    sr.FileError: OSError,
    sr.GradientError: RuntimeError,
    sr.ModelError: ValueError,
    sr.NonFiniteError: ValueError,
    sr.OptionError: ValueError,
    sr.OutputError: ValueError,
    sr.PlanError: ValueError,
    sr.RankError: ValueError,
    sr.SlimrankError: ValueError,
    sr.UnknownNameError: LookupError,
}


def refused(error: type[sr.SlimrankError], words: str, call: Callable[[], object]) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    assert isinstance(caught.value, sr.SlimrankError)
    assert isinstance(caught.value, STANDARD[error])


def with_bad(value: float, where: int = 1) -> list[Tensor]:
    batches = data()
    batches[where][2, 3] = value
    return batches


class Once:
    """Looks like a loader, yields on the first pass only."""

    def __init__(self) -> None:
        self._source = iter(data())

    def __iter__(self) -> Iterator[Tensor]:
        yield from self._source


class Shuffled:
    """Other data on every pass."""

    def __iter__(self) -> Iterator[Tensor]:
        for batch in data():
            yield batch[torch.randperm(6)] + torch.rand(1)


@pytest.mark.parametrize(
    ("batches", "error", "words"),
    [
        ([], sr.BatchesError, r"batches is empty; give at least one batch"),
        (
            [torch.zeros(0, 12)],
            sr.BatchesError,
            r"batch 0 holds no sample; leave empty batches out",
        ),
        ([*data(), torch.zeros(0, 12)], sr.BatchesError, r"batch 2 holds no sample"),
        (
            torch.zeros(4, 12),
            sr.BatchesTypeError,
            r"batches is a bare tensor \[4, 12\]; give a list",
        ),
        (
            (x for x in data()),
            sr.BatchesTypeError,
            r"batches is a generator .*only once; pass list",
        ),
        (iter(data()), sr.BatchesTypeError, r"can be read only once; pass list\(batches\)"),
        (map(abs, data()), sr.BatchesTypeError, r"batches is a map that can be read only once"),
        (7, sr.BatchesTypeError, r"batches is a int, which cannot be iterated; give a list"),
        (None, sr.BatchesTypeError, r"batches is a NoneType, which cannot be iterated"),
        ("data", sr.BatchesTypeError, r"batches is a str; give a re-iterable of batches"),
        ({"x": data()[0]}, sr.BatchesTypeError, r"batches is a dict; give a re-iterable"),
        ([3.0], sr.BatchesTypeError, r"a batch is a float; give a tensor, a tuple .*inputs="),
        (
            Once(),
            sr.BatchesError,
            r"ended after \d of \d; give a re-iterable such as a list|is empty",
        ),
        (Shuffled(), sr.BatchesError, r"batch 0 differs .*shuffle=False"),
        (
            [torch.zeros(4, 13)],
            sr.BatchesError,
            r"Sequential refuses the first batch \(Tensor\[4, 13",
        ),
        ([*data(), torch.zeros(4, 13)], sr.BatchesError, r"refuses|batch 2"),
        ([torch.zeros(4, 12).long()], sr.BatchesError, r"refuses the first batch .*dtype"),
        ([tuple(data())], sr.BatchesError, r"refuses the first batch .*inputs=lambda b: b\[0\]"),
        ([{"images": data()[0]}], sr.BatchesError, r"refuses the first batch \(images=\)"),
        (
            with_bad(float("nan")),
            sr.NonFiniteError,
            r"batch 1, argument 0: 1 of 72 values are nan",
        ),
        (
            with_bad(float("inf"), 0),
            sr.NonFiniteError,
            r"batch 0, argument 0: 1 of 72 .*clean the data",
        ),
    ],
)
def test_batches(batches: object, error: type[sr.SlimrankError], words: str) -> None:
    refused(error, words, lambda: sr.study(net(), batches, progress=False))  # type: ignore[arg-type]


def test_a_device_mismatch() -> None:
    batches = [x.to("meta") for x in data()]
    words = r"batch 0, argument 0: the tensor is on meta, the model on cpu; move the batches with inputs="
    refused(sr.DeviceError, words, lambda: sr.study(net(), batches, progress=False))


@pytest.mark.gpu
def test_a_model_on_the_gpu_and_batches_on_the_cpu() -> None:
    words = r"the tensor is on cpu, the model on cuda:0; move the batches"
    refused(sr.DeviceError, words, lambda: sr.study(net().cuda(), data(), progress=False))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value: float) -> None:
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = value
    words = r"2\.weight holds nan or inf; load sound weights first"
    refused(sr.NonFiniteError, words, lambda: sr.study(model, data(), progress=False))
    with torch.no_grad():
        model[2].weight[0, 0] = 0
        model[0].bias[1] = value
    words = r"0\.bias holds nan or inf"
    refused(sr.NonFiniteError, words, lambda: sr.study(model, data(), progress=False))


def test_weights_that_are_not_finite_in_apply(study: sr.Study) -> None:
    model = net()
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    plan = sr.Plan.manual(study, {"2": ("weight_svd", {"rank": 3})})
    for batches in (None, data()):
        refused(
            sr.NonFiniteError,
            r"2\.weight holds nan or inf",
            lambda batches=batches: sr.apply(model, plan, batches, progress=False),
        )


class Late(nn.Module):
    """Sound weights and data, and an output or gradient that is not finite."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.body = net()
        self.what = what

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.what == "output":
            return x / 0.0
        # Finite in value; the root has no slope at zero.
        return x + (x - x.detach()).abs().sqrt().sum(-1, keepdim=True)


@pytest.mark.filterwarnings("ignore")
def test_outputs_that_are_not_finite() -> None:
    words = r"output of the model holds nan or inf on calibration samples; pass outputs="
    refused(sr.NonFiniteError, words, lambda: sr.study(Late("output"), data(), progress=False))


def test_gradients_that_are_not_finite() -> None:
    words = r"layer 'body\.\d': its output gradient holds nan or inf; .*fisher=False"
    refused(sr.NonFiniteError, words, lambda: sr.study(Late("gradient"), data(), progress=False))
    sr.study(Late("gradient"), data(), fisher=False, progress=False)


class Picked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = net()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).argmax(-1)


class Detached(Picked):
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).detach()


def test_outputs_without_a_gradient_path() -> None:
    words = r"no gradient flows from the outputs .*pass outputs=lambda out: .*fisher=False"
    refused(sr.GradientError, words, lambda: sr.study(Detached(), data(), progress=False))
    result = sr.compress(Detached(), data(), macs=0.9, fisher=False, progress=False)
    assert result.keep_ratio("macs") <= 0.9


def test_outputs_without_a_floating_tensor() -> None:
    words = r"the model returned one tensor \[\d+\] of torch.int64 without a floating tensor .*pass outputs="
    refused(sr.OutputError, words, lambda: sr.study(Picked(), data(), progress=False))


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ("logits", r"outputs='logits': the model returns one tensor \[\d+, 16\], so 'logits' names none"),
        (99, r"outputs=99: the model returns one tensor \[\d+, 16\], so 99 names none of several outputs"),
        (
            lambda out: out["logits"],
            r"outputs= failed on what the model returned, one tensor .*give a function of it",
        ),
        (lambda _out: None, r"without a floating tensor .*pass outputs="),
    ],
)
def test_outputs_that_do_not_fit(outputs: object, words: str) -> None:
    call = lambda: sr.study(net(), data(), outputs=outputs, progress=False)  # type: ignore[arg-type] # noqa: E731
    refused(sr.OutputError, words, call)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (nn.Sequential(nn.ReLU()), sr.ModelError, r"no compressible layer \(it holds no weight matrix\)"),
        (nn.Sequential(nn.Linear(12, 1)), sr.ModelError, r"no compressible layer \(1 x too small to gain"),
        (nn.Linear(12, 12), sr.ModelError, r"the model itself is this layer; wrap it in nn\.Sequential"),
        (nn.Sequential(nn.LazyLinear(12)), sr.ModelError, r"not initialised yet .*run the model once first"),
        (lambda x: x, sr.OptionError, r"model is a function; give a torch\.nn\.Module"),
        ({"state": 1}, sr.OptionError, r"model is a dict; give a torch\.nn\.Module"),
    ],
)
def test_models(model: object, error: type[sr.SlimrankError], words: str) -> None:
    refused(error, words, lambda: sr.study(model, data(), progress=False))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_script_module() -> None:
    model = torch.jit.trace(net(), data()[0])
    words = r"script|jit"
    refused(sr.ModelError, words, lambda: sr.study(model, data(), progress=False))


def test_a_model_that_cannot_be_copied() -> None:
    model = net()
    model.source = (x for x in range(3))
    words = r"Sequential cannot be deep-copied \(.*generator.*\); remove what copy\.deepcopy\(model\) refuses"
    refused(sr.ModelError, words, lambda: sr.study(model, data(), progress=False))


RATIOS = [0, -0.5, 1.5, float("nan"), float("inf"), "half", True]


@pytest.mark.parametrize("metric", ["macs", "params", "bytes"])
@pytest.mark.parametrize("ratio", RATIOS)
def test_budgets_that_are_no_keep_ratio(study: sr.Study, metric: str, ratio: object) -> None:
    words = rf"{metric}={ratio!r} is no keep ratio.*\(0, 1\].*{metric}=0\.5"
    refused(sr.BudgetError, words, lambda: study.plan(**{metric: ratio}))  # type: ignore[arg-type]
    call = lambda: sr.compress(net(), [], progress=False, **{metric: ratio})  # type: ignore[arg-type] # noqa: E731
    # Told before anything is measured.
    refused(sr.BudgetError, words, call)


def test_no_budget(study: sr.Study) -> None:
    refused(sr.BudgetError, r"a plan needs a budget; .*macs=0\.5, .*latency=, activation_bytes=", study.plan)
    call = lambda: sr.compress(net(), data(), progress=False)  # noqa: E731
    refused(sr.BudgetError, r"compress needs a budget; .*macs=0\.5, .*latency=, activation_bytes=", call)


def test_a_budget_out_of_reach(study: sr.Study) -> None:
    words = r"macs=0\.001 cannot be met; the smallest reachable is macs=0\.\d+\. .*Raise the budget"
    refused(sr.BudgetError, words, lambda: study.plan(macs=0.001))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"methods": ("wieght_svd",)},
            sr.UnknownNameError,
            r"'wieght_svd' does not exist; did you mean 'weigh",
        ),
        (
            {"methods": ("pruning",)},
            sr.UnknownNameError,
            r"method 'pruning' does not exist; did you mean 'channel_pruning'\?",
        ),
        ({"methods": ()}, sr.OptionError, r"methods is empty; give some of weight_svd"),
        ({"methods": "weight_svd"}, sr.SlimrankError, r"methods.*'weight_svd'.*tuple|give a tuple"),
        (
            {"skip": ("layer9.*",)},
            sr.UnknownNameError,
            r"skip: 'layer9\.\*' matches no layer; known are",
        ),
        (
            {"likelihood": "poisson"},
            sr.OptionError,
            r"likelihood='poisson'; it is one of 'auto'",
        ),
        (
            {"channel_order": "osb"},
            sr.UnknownNameError,
            r"channel_order='osb' does not exist; did you mean 'obs'",
        ),
        ({"draws": 0}, sr.OptionError, r"draws=0; give a whole number of at least 1"),
        ({"draws": 1.5}, sr.OptionError, r"draws=1\.5; give a whole number"),
        ({"holdout": 0}, sr.OptionError, r"holdout=0; give a share between 0 and 1"),
        ({"holdout": 1.0}, sr.OptionError, r"holdout=1\.0; give a share between 0 and 1"),
        ({"holdout": float("nan")}, sr.OptionError, r"holdout=nan; give a share between 0 and 1"),
        ({"holdout": "some"}, sr.OptionError, r"holdout='some'; give a share between 0 and 1"),
        ({"seed": 0.5}, sr.OptionError, r"seed=0\.5; give a whole number"),
    ],
)
def test_options_of_a_study(options: dict[str, object], error: type[sr.SlimrankError], words: str) -> None:
    call = lambda: sr.study(net(), data(), progress=False, **options)  # type: ignore[arg-type] # noqa: E731
    refused(error, words, call)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (
            {"select": "optimum"},
            sr.UnknownNameError,
            r"'optimum' does not exist; did you mean 'optimal'",
        ),
        (
            {"methods": ("spatial",)},
            sr.UnknownNameError,
            r"methods: 'spatial' was not measured .*'spatial_svd'",
        ),
        ({"methods": ()}, sr.OptionError, r"methods: \(\) names no method; give a tuple"),
        ({"skip": ("fc",)}, sr.UnknownNameError, r"skip: 'fc' matches no layer; known are '0', '2'"),
        ({"multiple_of": 0}, sr.OptionError, r"multiple_of is 0; give a whole number of at least 1"),
        ({"multiple_of": 1.5}, sr.OptionError, r"multiple_of is 1\.5; give a whole number"),
        ({"multiple_of": "atuo"}, sr.OptionError, r"multiple_of is 'atuo'; .*did you mean 'auto'"),
        ({"multiple_of": {"0": "atuo"}}, sr.OptionError, r"multiple_of\['0'\] is 'atuo'; .*'auto'"),
        ({"multiple_of": {"fc*": 4}}, sr.UnknownNameError, r"multiple_of\['fc\*'\] matches no layer"),
        ({"multiple_of": {"fc*": "auto"}}, sr.UnknownNameError, r"multiple_of\['fc\*'\] matches no layer"),
    ],
)
def test_options_of_a_plan(
    study: sr.Study, options: dict[str, object], error: type[sr.SlimrankError], words: str
) -> None:
    refused(error, words, lambda: study.plan(macs=0.9, **options))  # type: ignore[arg-type]


def test_multiples_are_checked_before_a_study() -> None:
    seen: list[object] = []
    call = lambda: sr.compress(net(), data(), macs=0.9, multiple_of="8", inputs=seen.append)  # type: ignore[arg-type] # noqa: E731
    refused(sr.OptionError, r"multiple_of is '8'; give a whole number", call)
    assert seen == []


def test_one_glob_as_text(study: sr.Study) -> None:
    assert sr.study(net(), data(), skip="2*", progress=False).plan(macs=0.8).settings.keys() == {"0"}
    assert study.plan(macs=0.8, skip="2*").settings.keys() == {"0"}


@pytest.mark.parametrize(
    ("settings", "error", "words"),
    [
        ({"3": ("weight_svd", 0.5)}, sr.UnknownNameError, r"'3'.*known are '0', '2'"),
        (
            {"0": ("weigth_svd", 0.5)},
            sr.UnknownNameError,
            r"'weigth_svd'.*did you mean 'weight_svd'",
        ),
        ({"0": ("spatial_svd", 0.5)}, sr.OptionError, r"layer '0': .*spatial_svd"),
        (
            {"0": ("weight_svd", {"rank": 13})},
            sr.RankError,
            r"layer '0': .*rank 13 is outside 1\.\.\d+",
        ),
        ({"0": ("weight_svd", {"rank": 0})}, sr.SlimrankError, r"layer '0': .*rank"),
        ({"0": ("weight_svd", 1.2)}, sr.SlimrankError, r"layer '0': .*1\.2"),
        ({"0": ("weight_svd", float("nan"))}, sr.SlimrankError, r"layer '0': .*nan"),
        ({"0": "weight_svd"}, sr.OptionError, r"layer '0'"),
    ],
)
def test_manual_plans(
    study: sr.Study,
    settings: dict[str, object],
    error: type[sr.SlimrankError],
    words: str,
) -> None:
    refused(error, words, lambda: sr.Plan.manual(study, settings))  # type: ignore[arg-type]


def test_an_unknown_metric(study: sr.Study) -> None:
    result = study.apply(study.plan(macs=0.9))
    words = r"metric 'mac' does not exist; did you mean 'macs'"
    refused(sr.UnknownNameError, words, lambda: result.keep_ratio("mac"))  # type: ignore[arg-type]


def test_a_plan_of_another_model(study: sr.Study) -> None:
    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 17))
    plan = study.plan(macs=0.9)
    words = r"belongs to another model .*'2' weight_shape \(16, 24\) -> \(17, 24\); build the model"
    for batches in (None, data()):
        refused(
            sr.PlanError,
            words,
            lambda batches=batches: sr.apply(model, plan, batches, progress=False),
        )


def test_what_is_no_plan(study: sr.Study, tmp_path: Path) -> None:
    words = r"plan"
    refused(sr.FileError, words, lambda: sr.Plan.load(tmp_path / "gone.json"))
    (tmp_path / "plan.json").write_text('{"format": 1}')
    refused(sr.PlanError, r"'steps' is missing", lambda: sr.Plan.load(tmp_path / "plan.json"))
    for value in ("plan.json", {"0": ("weight_svd", 0.5)}, None):
        refused(
            sr.SlimrankError,
            r"plan is a \w+; give",
            lambda value=value: study.apply(value),
        )
        refused(
            sr.SlimrankError,
            r"plan is a \w+; give",
            lambda value=value: sr.apply(net(), value, progress=False),
        )


def test_a_place_that_cannot_be_written(study: sr.Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = study.apply(study.plan(macs=0.9))
    below = tmp_path / "file" / "below"
    refused(sr.FileError, r"cannot be written", lambda: result.save(below))
    refused(sr.FileError, r"cannot be written", lambda: study.save(below))
    refused(sr.FileError, r"cannot be written", lambda: result.report(below / "page.html"))
    refused(sr.FileError, r"cannot be written", lambda: study.plan(macs=0.9).save(below))
    refused(
        sr.FileError,
        r"cannot be written",
        lambda: sr.study(net(), data(), run_dir=below, progress=False),
    )


def test_every_error_is_of_slimrank_and_of_a_standard_type() -> None:
    errors = [value for name, value in vars(sr).items() if name.endswith("Error")]
    assert len(errors) > 10
    for error in errors:
        assert issubclass(error, sr.SlimrankError)
        if error is not sr.SlimrankError:
            standard = [base for base in error.__mro__ if base.__module__ == "builtins"]
            assert set(standard) > {Exception, BaseException, object}


def test_the_wrong_kind_of_thing_is_told_with_its_cure(study: sr.Study) -> None:
    with pytest.raises(sr.OptionError, match=r"scores is a str; give a table, e\.g\. slimrank\.Scores\.load"):
        study.plan(macs=0.6, scores="scores.json")  # type: ignore[arg-type]
    for layers in ([13], []):
        with pytest.raises(sr.OptionError, match="give names or globs of layers, or None for all"):
            sr.measure_scores(study, len, layers=layers, progress=False)  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="settings is a list; give layer -> setting"):
        sr.Plan.manual(study, [("fc", 0.4)])  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match="other is a str; give a Plan"):
        study.plan(macs=0.5).diff("auto.json")  # type: ignore[arg-type]
    with pytest.raises(sr.OptionError, match=r"splits=0\.7; give several keep ratios"):
        sr.search_split(study, macs=0.5, splits=0.7)  # type: ignore[arg-type]
    with pytest.raises(sr.UnknownNameError, match="'foo' was not measured by the study"):
        sr.search_split(study, macs=0.5, methods=("weight_svd", "foo"))  # type: ignore[arg-type]


def test_inputs_that_fail_or_are_no_function() -> None:
    with pytest.raises(sr.BatchesTypeError, match=r"inputs=0 is no function; .*inputs=lambda b: b\[0\]"):
        sr.study(net(), data(), inputs=0, progress=False)  # type: ignore[arg-type]
    with pytest.raises(sr.BatchesError, match=r"inputs= failed on a batch, a Tensor: TypeError"):
        sr.study(net(), data(), inputs=lambda b: b["x"], progress=False)  # type: ignore[index]
