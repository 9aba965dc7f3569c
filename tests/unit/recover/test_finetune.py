# SPDX-License-Identifier: Apache-2.0
"""What ``loss_fn`` may be, and what it is given."""

import functools

import pytest
import torch
from torch import Tensor, nn

import slimrank as sr
from slimrank.recover import finetune

tune = functools.partial(finetune, progress=False)
PAIRS = [(torch.ones(4, 6), torch.tensor([0, 1, 2, 0]))] * 3


@pytest.mark.parametrize(
    ("loss_fn", "words"),
    [
        (3, r"loss_fn is a int; give a function of outputs and targets, e.g. torch.nn.CrossEntropyLoss\(\)"),
        (nn.CrossEntropyLoss, r"loss_fn is the class CrossEntropyLoss; give one of it: CrossEntropyLoss\(\)"),
        (
            nn.CrossEntropyLoss(reduction="none"),
            r"loss_fn gave a float32 tensor \[4\] on batch \d \(outputs a float32 tensor \[4, 3\], targets a "
            r"int64 tensor \[4\]\); give a scalar",
        ),
        (lambda o, t: float(o.sum()), "loss_fn gave a float on batch"),
        (lambda o, t: o.argmax(), r"loss_fn gave a int64 tensor \[\] on batch"),
        (lambda o, t: o["logits"], "loss_fn failed on batch .* make it fit what the model returns"),
        (lambda o: o.sum(), "loss_fn failed on batch .*: TypeError"),
    ],
)
def test_what_is_no_loss_is_refused(loss_fn: object, words: str) -> None:
    with pytest.raises(sr.OptionError, match=words):
        tune(nn.Linear(6, 3), PAIRS, loss_fn)  # type: ignore[arg-type]


def test_a_loss_of_one_element_will_do() -> None:
    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets).reshape(1, 1)

    assert isinstance(tune(nn.Linear(6, 3), PAIRS, loss_fn), nn.Linear)


def test_targets_may_be_anything() -> None:
    pairs = [(torch.ones(4, 6), {"boxes": [torch.zeros(4, 3)], "name": "a"})] * 2
    tuned = tune(nn.Linear(6, 3), pairs, lambda o, t: (o - t["boxes"][0]).square().mean(), lr=0.1)
    assert isinstance(tuned, nn.Linear)


def test_a_model_that_refuses_the_batches_says_so() -> None:
    with pytest.raises(sr.BatchesError, match="Linear refuses batch"):
        tune(nn.Linear(5, 3), PAIRS, nn.CrossEntropyLoss())
