# SPDX-License-Identifier: Apache-2.0
"""Make the demo: draw glyphs in open fonts, train GlyphNet on them, write both into ``slimrank.demo``.

Run from the repository root, on Debian, with Pillow installed (about 10 minutes on one core)::

    apt-get install fonts-cabin ... (``PACKAGES`` below)
    python examples/train_demo.py

No design stands on both sides of the split: redrawings of one face (Liberation Sans, Nimbus Sans,
FreeSans; Lato and Carlito; DejaVu Sans Mono and Hack) are all on the training side.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from safetensors.torch import save
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from slimrank.demo._glyphnet import CLASSES, IMAGES_FILE, WEIGHTS_FILE, GlyphNet, normalised

PACKAGES = (
    "fonts-cabin fonts-cantarell fonts-comfortaa fonts-comic-neue fonts-crosextra-caladea "
    "fonts-crosextra-carlito fonts-dejavu-core fonts-dejavu-extra fonts-dosis fonts-ebgaramond "
    "fonts-firacode fonts-freefont-ttf fonts-hack fonts-inconsolata fonts-jetbrains-mono fonts-junicode "
    "fonts-lato fonts-liberation fonts-linuxlibertine fonts-mononoki fonts-open-sans fonts-quicksand "
    "fonts-roboto-unhinted fonts-urw-base35"
)
# Named, not globbed: a machine with more fonts must draw the same images.
TRAIN_FAMILIES = (
    *("C059", "Cantarell", "Carlito", "Comfortaa", "DejaVu Sans", "DejaVu Sans Mono", "DejaVu Serif"),
    *("Dosis", "EB Garamond", "Fira Code", "FreeMono", "FreeSans", "FreeSerif", "Hack", "Inconsolata"),
    *("Junicode Two Beta", "Lato", "Liberation Mono", "Liberation Sans", "Liberation Sans Narrow"),
    *("Liberation Serif", "mononoki", "Nimbus Mono PS", "Nimbus Roman", "Nimbus Sans"),
    *("Nimbus Sans Narrow", "P052", "Quicksand", "Quicksand Light", "Quicksand Medium", "Roboto"),
    *("Roboto Condensed", "Z003"),
)
TEST_FAMILIES = (
    *("Cabin", "Caladea", "Comic Neue", "JetBrains Mono", "Linux Biolinum O", "Linux Libertine O"),
    *("Linux Libertine Mono O", "Open Sans", "Open Sans Condensed", "URW Bookman", "URW Gothic"),
)
SIDE = 32
CANVAS = 2 * SIDE  # drawn at twice the size, then averaged down: smooth edges
TEST_PER_CLASS = 43
N_CALIBRATION = 512

Sheets = Mapping[str, Sequence[Sequence[Image.Image]]]


def load_sheets(root: Path, families: Sequence[str]) -> Sheets:
    """Every class drawn once, upright and centred, in every font of the families.

    Args:
        root: the folder that holds the installed fonts.
        families: names as the font files give them.

    Returns:
        Family -> its fonts -> one grey image (64x64) per class.

    Raises:
        SystemExit: a family is not installed.
    """
    sheets: dict[str, list[list[Image.Image]]] = {family: [] for family in families}
    # By file name, not by path: the folders differ between versions of Debian.
    for path in sorted(root.rglob("*.[to]tf"), key=lambda path: path.name):
        font = ImageFont.truetype(str(path), 46)
        family = font.getname()[0]
        if family in sheets:
            sheets[family].append([draw_character(font, character) for character in CLASSES])
    missing = [family for family, fonts in sheets.items() if not fonts]
    if missing:
        raise SystemExit(f"{root}: no font of {missing}; run: apt-get install {PACKAGES}")
    return sheets


def draw_character(font: ImageFont.FreeTypeFont, character: str) -> Image.Image:
    """One character in the middle of a canvas.

    Args:
        font: a font at the size to draw at.
        character: one character.

    Returns:
        64x64, grey, ink 255 on 0.
    """
    canvas = Image.new("L", (CANVAS, CANVAS))
    left, top, right, bottom = font.getbbox(character)
    corner = ((CANVAS - left - right) / 2, (CANVAS - top - bottom) / 2)
    ImageDraw.Draw(canvas).text(corner, character, fill=255, font=font)
    return canvas


def warp(glyph: Image.Image, shift: tuple[float, float], rng: np.random.Generator) -> Image.Image:
    """The glyph turned, sheared, scaled and moved at random.

    Args:
        glyph: 64x64, grey.
        shift: where its middle goes, (right, down) from the middle of the canvas, in its pixels.
        rng: source of the chance.

    Returns:
        64x64, grey.
    """
    angle = rng.normal(0, np.deg2rad(9))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shear = np.array([[1, rng.normal(0, 0.15)], [0, 1]])
    size = rng.uniform(0.8, 1.25) * np.exp(rng.normal(0, 0.1, size=2))
    # Pillow wants the way back, from the output's pixel to the glyph's.
    back = np.linalg.inv(turn @ shear @ np.diag(size))
    middle = np.array([CANVAS / 2, CANVAS / 2])
    offset = middle - back @ (middle + np.array(shift))
    data = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    return glyph.transform(glyph.size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)


def draw_ink(label: int, sheets: Sheets, rng: np.random.Generator) -> NDArray[np.float64]:
    """The ink of one picture of a class: warped, crowded, crossed, blurred.

    Args:
        label: index into ``CLASSES``.
        sheets: the fonts to choose from; every family is as likely as every other.
        rng: source of the chance.

    Returns:
        (32, 32), 0 (paper) to 1 (ink).
    """
    families = list(sheets)

    def any_font() -> Sequence[Image.Image]:
        fonts = sheets[families[rng.integers(len(families))]]
        return fonts[rng.integers(len(fonts))]

    font = any_font()
    ink = np.asarray(warp(font[label], tuple(rng.normal(0, 2.5, size=2)), rng))
    for _ in range(rng.integers(3)):
        # A neighbour: mostly beside the glyph, as in a word, so that a part of it shows.
        side = rng.choice([-1, 1])
        neighbour = (font if rng.random() < 0.6 else any_font())[rng.integers(len(CLASSES))]
        shift = (side * rng.uniform(32, 44), rng.normal(0, 8))
        if rng.random() < 0.3:
            shift = (shift[1], shift[0])
        ink = np.maximum(ink, np.asarray(warp(neighbour, shift, rng)))
    picture = Image.fromarray(ink)
    draw = ImageDraw.Draw(picture)
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        # Ink or paper: a line crosses the glyph or cuts it.
        ends = [float(end) for end in rng.uniform(-8, CANVAS + 8, size=4)]
        draw.line(ends, fill=int(rng.choice([0, 160, 255])), width=int(rng.integers(1, 5)))
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.8))).reduce(2)
    return np.asarray(picture, dtype=np.float64) / 255


def photograph(ink: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The ink on paper, in some light, with the noise of a camera.

    Args:
        ink: (32, 32), 0 (paper) to 1 (ink).
        rng: source of the chance.

    Returns:
        (32, 32) uint8.
    """
    contrast = rng.uniform(60, 200) * rng.choice([-1, 1])
    paper = rng.uniform(max(0, -contrast), 255 - max(0, contrast))
    across = np.linspace(-1, 1, SIDE)
    light = rng.normal(0, 12) * across[:, None] + rng.normal(0, 12) * across[None, :]
    # Tied to the contrast: at less than about 5:1 nobody can read a thin, blurred glyph.
    noise = rng.uniform(0.03, 0.17) * abs(contrast) * rng.standard_normal((SIDE, SIDE))
    grey = paper + contrast * ink + light + noise
    return np.clip(grey.round(), 0, 255).astype(np.uint8)


def render_all(labels: NDArray[np.int64], sheets: Sheets, rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture for each label.

    Args:
        labels: (S,), indices into ``CLASSES``.
        sheets: the fonts to choose from.
        rng: source of the chance.

    Returns:
        (S, 32, 32) uint8.
    """
    return np.stack([photograph(draw_ink(int(label), sheets, rng), rng) for label in labels])


def train(
    model: nn.Module, images: Tensor, labels: Tensor, epochs: int, rng: torch.Generator, lr: float = 4e-3
) -> None:
    """Trains with one rise and fall of the learning rate; leaves the weights of the last step, in eval mode.

    There is no choice among checkpoints.

    Args:
        model: takes (N, 1, 32, 32) and gives logits; changed in place.
        images: (S, 1, 32, 32) float32, normalised.
        labels: (S,) int64.
        epochs: passes over the images.
        rng: source of the order and of the shifts.
        lr: the highest learning rate.
    """
    batch_size = 128
    model.train().to(memory_format=torch.channels_last)
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.2)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(epochs):
        start, total = time.perf_counter(), 0.0
        # The last, smaller batch is left out: its batch norm would be noisier than the others'.
        batches = torch.randperm(len(images), generator=rng).split(batch_size)[: steps // epochs]
        for batch in batches:
            down, right = torch.randint(-2, 3, (2,), generator=rng).tolist()
            shifted = images[batch].roll((down, right), dims=(2, 3))
            loss = loss_fn(model(shifted.contiguous(memory_format=torch.channels_last)), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}: loss {total / len(batches):.4f}, {seconds:.0f} s", flush=True)
    model.to(memory_format=torch.contiguous_format).eval()


@torch.inference_mode()
def measure_accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images whose largest logit is the right one.

    Args:
        model: in eval mode.
        images: (S, 1, 32, 32) float32, normalised.
        labels: (S,) int64.

    Returns:
        0 to 1.
    """
    found = torch.cat([model(batch).argmax(1) for batch in images.split(256)])
    return float((found == labels).float().mean())


def measure_macs(model: nn.Module) -> int:
    """Multiply-accumulates for one image, as PyTorch counts them.

    Args:
        model: in eval mode.

    Returns:
        The count; batch norm and additions are not in it.
    """
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        model(torch.zeros(1, 1, SIDE, SIDE))
    return int(counter.get_total_flops()) // 2


def main() -> None:
    """Draw, train, write, and say what came out."""
    parser = argparse.ArgumentParser(description="Make the model and the images of slimrank.demo.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--images", type=int, default=40_000, help="training images")
    parser.add_argument("--fonts", type=Path, default=Path("/usr/share/fonts"))
    parser.add_argument("--out", type=Path, default=Path("src/slimrank/demo"))
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    torch.set_num_threads(1)  # the order of a sum follows the threads, and so do the weights
    torch.use_deterministic_algorithms(True)
    start = time.perf_counter()

    # One stream each: more training images leave the test images as they are.
    train_rng, calibration_rng, test_rng = np.random.default_rng(args.seed).spawn(3)
    train_sheets = load_sheets(args.fonts, TRAIN_FAMILIES)
    test_sheets = load_sheets(args.fonts, TEST_FAMILIES)
    test_labels = test_rng.permutation(np.arange(TEST_PER_CLASS * len(CLASSES)) % len(CLASSES))
    test_images = render_all(test_labels, test_sheets, test_rng)
    calibration_labels = calibration_rng.integers(len(CLASSES), size=N_CALIBRATION)
    calibration = render_all(calibration_labels, train_sheets, calibration_rng)
    train_labels = train_rng.integers(len(CLASSES), size=args.images)
    train_images = render_all(train_labels, train_sheets, train_rng)
    print(f"drawn in {time.perf_counter() - start:.0f} s", flush=True)

    generator = torch.Generator().manual_seed(args.seed)
    model = GlyphNet()
    train(model, normalised(train_images), torch.from_numpy(train_labels), args.epochs, generator)
    images_path, weights_path = args.out / IMAGES_FILE, args.out / WEIGHTS_FILE
    np.savez_compressed(
        images_path,
        calibration=calibration,
        test_images=test_images,
        test_labels=test_labels.astype(np.uint8),
    )
    weights_path.write_bytes(save(model.state_dict()))

    accuracy = measure_accuracy(model, normalised(test_images), torch.from_numpy(test_labels))
    print(f"test accuracy {accuracy:.4f} on {len(test_labels)} images of unseen families")
    print(f"{sum(p.numel() for p in model.parameters()):,} params, {measure_macs(model):,} MACs an image")
    print(f"{weights_path}: {weights_path.stat().st_size:,} bytes")
    print(f"{images_path}: {images_path.stat().st_size:,} bytes")
    print(f"{time.perf_counter() - start:.0f} s in all")


if __name__ == "__main__":
    main()
