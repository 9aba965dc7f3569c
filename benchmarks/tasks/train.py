# SPDX-License-Identifier: Apache-2.0
"""Draw the benchmark's pictures and train its four networks; both are committed under ``data/``.

Run from the repository root, on Debian with the fonts that ``examples/train_demo.py`` names::

    python -m benchmarks.tasks.train --pictures
    python -m benchmarks.tasks.train --network resnet   # vgg, mobilenet, vit
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from benchmarks.tasks.glyphs import DATA, pack, round_ink, test_set
from benchmarks.tasks.networks import CLASSES, NETWORKS
from examples.train_demo import (
    TEST_FAMILIES,
    TRAIN_FAMILIES,
    Sheets,
    draw_ink,
    load_sheets,
    measure_accuracy,
    measure_macs,
    photograph,
    train,
)
from slimrank.demo._glyphnet import normalised

EPOCHS = {"vgg": 7, "resnet": 7, "mobilenet": 8, "vit": 10}
LEARNING_RATES = {"vgg": 3e-3, "resnet": 4e-3, "mobilenet": 4e-3, "vit": 2e-3}
FONTS = Path("/usr/share/fonts")


def draw_set(
    count: int, sheets: Sheets, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Ink of pictures, the classes equally often, in random order.

    Args:
        count: pictures.
        sheets: the fonts to choose from.
        rng: source of the chance.

    Returns:
        (count, 32, 32), 0 to 1 in 16 levels, and (count,) labels.
    """
    labels = rng.permutation(np.arange(count) % CLASSES)
    return round_ink(np.stack([draw_ink(int(label), sheets, rng) for label in labels])), labels


def write_pictures(seed: int) -> None:
    """Draws all that is committed and writes ``data/glyphs.npz``.

    Args:
        seed: of every choice.
    """
    streams = np.random.default_rng([seed, 7]).spawn(4)
    train_sheets, test_sheets = load_sheets(FONTS, TRAIN_FAMILIES), load_sheets(FONTS, TEST_FAMILIES)
    test, test_labels = draw_set(213 * CLASSES, test_sheets, streams[0])
    labelled, labelled_labels = draw_set(2048, train_sheets, streams[1])
    calibration, _ = draw_set(4096, train_sheets, streams[2])
    other_fonts, _ = draw_set(1024, test_sheets, streams[3])
    DATA.mkdir(exist_ok=True)
    np.savez_compressed(
        DATA / "glyphs.npz",
        test=pack(test),
        test_labels=test_labels.astype(np.uint8),
        labelled=pack(labelled),
        labelled_labels=labelled_labels.astype(np.uint8),
        calibration=pack(calibration),
        other_fonts=pack(other_fonts),
    )
    print(f"{DATA / 'glyphs.npz'}: {(DATA / 'glyphs.npz').stat().st_size:,} bytes", flush=True)


def train_network(name: str, seed: int, count: int) -> None:
    """Trains one network and writes ``data/NAME.safetensors`` in float16.

    Args:
        name: key of ``NETWORKS``.
        seed: of pictures, weights and order.
        count: training pictures, drawn anew at every run.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)  # the order of a sum follows the threads, and so do the weights
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()
    rng = np.random.default_rng([seed, 8])
    ink, labels = draw_set(count, load_sheets(FONTS, TRAIN_FAMILIES), rng)
    images = normalised(np.stack([photograph(picture, rng) for picture in ink]))
    print(f"drawn in {time.perf_counter() - start:.0f} s", flush=True)
    model = NETWORKS[name]()
    generator = torch.Generator().manual_seed(seed)
    train(model, images, torch.from_numpy(labels), EPOCHS[name], generator, LEARNING_RATES[name])
    state = {
        key: value.half() if value.is_floating_point() else value for key, value in model.state_dict().items()
    }
    (DATA / f"{name}.safetensors").write_bytes(save(state))
    model.load_state_dict(state)
    print(f"{name}: {measure_macs(model):,} MACs, {sum(p.numel() for p in model.parameters()):,} params")
    accuracy = 100 * measure_accuracy(model, *test_set())
    print(f"test accuracy {accuracy:.2f} %, {time.perf_counter() - start:.0f} s")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description="Make the benchmark's pictures and networks.")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures that are committed")
    parser.add_argument("--network", choices=sorted(NETWORKS), help="train this network")
    parser.add_argument("--images", type=int, default=40_000, help="training pictures")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.pictures:
        write_pictures(args.seed)
    if args.network:
        train_network(args.network, args.seed, args.images)


if __name__ == "__main__":
    main()
