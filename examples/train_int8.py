# SPDX-License-Identifier: Apache-2.0
"""Compress a network, then train it for int8: the quantisation-aware fine-tuning of torchao.

From the repository root, with ``pip install 'slimrank[export,torchao]'``::

    python examples/train_int8.py --macs 0.3 --epochs 4 --out int8

Rounds weights and values while it trains, towards the outputs it had in float; no labels are needed. What
was trained goes back into an ordinary module, of which slimrank writes the int8 file. Put your own model and
batches in place of the demo's.
"""

import argparse
import copy
import logging
from collections.abc import Sequence
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import slimrank as sr
from slimrank import demo

# torchao tells of libraries for graphics cards that it does not find, torch of an old way to call it.
for name in ("torchao", "torch.utils._pytree"):
    logging.getLogger(name).setLevel(logging.ERROR)
from torchao.quantization.pt2e import move_exported_model_to_eval  # noqa: E402
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e  # noqa: E402
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (  # noqa: E402
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)


def train_for_int8(
    model: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    *,
    epochs: float,
    batch_size: int = 32,
    learning_rate: float = 1e-4,
) -> nn.Module:
    """A copy of a model, trained with weights and values rounded as int8 rounds them.

    Args:
        model: compressed; it is not changed.
        teacher: whose outputs are the targets: the same model in float, or the original.
        images: (S, C, H, W) to train on.
        epochs: passes over them; a fraction for fewer steps.
        batch_size: images in a step.
        learning_rate: at the start; it falls to zero along a cosine.

    Returns:
        The model in eval mode: ordinary layers in float, with what was learned.
    """
    sizes = ({0: torch.export.Dim("batch", min=2)},)
    # In eval mode norms keep their statistics, as in the file, which has them folded into the layers.
    plain = copy.deepcopy(model).eval()
    graph = torch.export.export(plain, (images[:2],), dynamic_shapes=sizes).module(check_guards=False)
    # As onnxruntime and torch round on x86: weights per output channel, values per tensor from 0 to 255.
    quantizer = X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=True))
    trained = prepare_qat_pt2e(graph, quantizer)
    # It has put norms into training mode.
    move_exported_model_to_eval(trained)

    generator = torch.Generator().manual_seed(0)
    shuffled = DataLoader(images, batch_size, shuffle=True, generator=generator)
    n_steps = max(1, round(epochs * len(shuffled)))
    optimiser = torch.optim.AdamW(trained.parameters(), lr=learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, n_steps)
    step = 0
    while step < n_steps:
        for chosen in shuffled:
            batch = mixed(chosen, generator)
            with torch.no_grad():
                target = teacher(batch).log_softmax(1)
            loss = functional.kl_div(
                trained(batch).log_softmax(1), target, reduction="batchmean", log_target=True
            )
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
            step += 1
            if step == n_steps:
                break
    # The graph has the parameters under the names of the model.
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            parameter.copy_(trained.get_parameter(name))
    return plain


def mixed(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images blended in pairs: the teacher has an answer to any image, so few of them go further."""
    share = torch.rand(len(images), 1, 1, 1, generator=generator)
    return share * images + (1 - share) * images[torch.randperm(len(images), generator=generator)]


def logits_of_file(path: Path) -> Tensor:
    """What an ONNX file answers to the demo's test images."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options)
    (name,) = [value.name for value in session.get_inputs()]
    found = [session.run(None, {name: images.numpy()})[0] for images, _ in demo.test_batches()]
    return torch.cat([torch.from_numpy(logits) for logits in found])


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Compresses the demo's network, writes int8 files with and without training, and compares them."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--macs", type=float, default=0.3, help="multiply-accumulates that are kept")
    parser.add_argument("--epochs", type=float, default=4, help="passes over the images in training")
    parser.add_argument("--out", type=Path, default=Path("int8"), help="directory for the files")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)

    model, batches = demo.build(), demo.calibration_batches()
    result = sr.compress(model, batches, macs=options.macs, compete=False, progress=False)
    tuned = train_for_int8(result.model, result.model.eval(), torch.cat(batches), epochs=options.epochs)

    files = {name: options.out / f"{name}.onnx" for name in ("compressed", "rounded", "trained")}
    result.export(files["compressed"])
    for name, found in (("rounded", result), ("trained", result.with_model(tuned))):
        print(found.export(files[name], quantize="int8").summary())
    labels = torch.cat([labels for _, labels in demo.test_batches()])
    logits = {name: logits_of_file(path) for name, path in files.items()}
    target = logits["compressed"].log_softmax(1)
    told = {"compressed": "float", "rounded": "int8", "trained": "int8, trained for it"}
    divergences = {}
    for name, found in logits.items():
        divergences[name] = float(
            functional.kl_div(found.log_softmax(1), target, reduction="batchmean", log_target=True)
        )
        right = float((found.argmax(1) == labels).float().mean())
        print(f"{told[name]:22}{right:8.2%} right, divergence from float {divergences[name]:.5f}")
    return divergences


if __name__ == "__main__":
    main()
