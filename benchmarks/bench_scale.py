# SPDX-License-Identifier: Apache-2.0
"""Does a ResNet-50-sized network at 224 px go through in minutes, and in how much memory?

Random weights with randomised norm statistics, 128 smooth random images; study, two plans, one apply. One
row, added to ``benchmarks/results/scale-cpu-torch<version>.csv`` with commit and date. Memory is the peak
of the process above what it held with model and images loaded. AIMET's time is estimated: its number of
evaluations, times 2,000 images, times the measured seconds of a forward.
"""

import resource
import time

import torch
from torch import Tensor, nn
from torch.nn import functional

import slimrank as sr
from benchmarks.reference import LABELLED
from benchmarks.tables import FACTORS, Row, context, merge_table, table_path

N_IMAGES, BATCH = 128, 32
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a shortcut."""

    def __init__(self, n_in: int, width: int, stride: int) -> None:
        super().__init__()
        n_out = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(n_in, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, n_out, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, n_in, H, W) to (N, 4 width, H / stride, W / stride)."""
        y = functional.relu(self.bn1(self.conv1(x)))
        y = functional.relu(self.bn2(self.conv2(y)))
        return functional.relu(self.bn3(self.conv3(y)) + self.shortcut(x))


def build() -> nn.Module:
    """A ResNet-50 with random weights whose activations neither vanish nor explode."""
    torch.manual_seed(0)
    layers: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    n_in = 64
    for width, depth, stride in STAGES:
        for block in range(depth):
            layers.append(Bottleneck(n_in, width, stride if block == 0 else 1))
            n_in = 4 * width
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, 1000)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.2)
    return model


def _peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _timed(action: object) -> float:
    start = time.perf_counter()
    action()  # type: ignore[operator]
    return time.perf_counter() - start


def main() -> None:
    """Runs the row and appends it to the table."""
    model = build()
    smooth = torch.randn(N_IMAGES, 3, 28, 28)
    images = functional.interpolate(smooth, size=224, mode="bilinear").split(BATCH)
    base = _peak_gb()
    start = time.perf_counter()
    study = sr.study(model, list(images), methods=FACTORS, progress=False)
    study_seconds, study_gb = time.perf_counter() - start, _peak_gb() - base
    print(f"study {study_seconds:.0f} s, {study_gb:.2f} GB: {study.seconds}", flush=True)
    plan = study.plan(macs=0.5)
    plan_seconds = max(_timed(lambda: study.plan(macs=0.5)), _timed(lambda: study.plan(macs=0.6, params=0.6)))
    start = time.perf_counter()
    result = study.apply(plan)
    apply_seconds = time.perf_counter() - start
    with torch.no_grad():
        per_image = _timed(lambda: model(torch.cat(images)[: 2 * BATCH])) / (2 * BATCH)
    # AIMET evaluates the network at nine ratios of every layer, as seen in its runs on the other networks.
    evaluations = 9 * sum(1 for spec in study.layers if spec.methods)
    reference_seconds = evaluations * LABELLED * per_image
    own_seconds = study_seconds + plan_seconds + apply_seconds
    row: Row = {
        "images": N_IMAGES,
        "macs_before": result.before.macs,
        "macs_counted": round(result.keep_ratio("macs"), 4),
        "divergence": round(result.divergence or 0.0, 5),
        "damage_predicted": round(result.damage or 0.0, 5),
        "unit": result.unit,
        "study_seconds": round(study_seconds),
        "plan_seconds": round(plan_seconds, 3),
        "apply_seconds": round(apply_seconds),
        "peak_gb_above_model_and_images": round(_peak_gb() - base, 2),
        "aimet_evaluations": evaluations,
        "aimet_labelled_images": LABELLED,
        "aimet_seconds_estimated": round(reference_seconds),
        "times_faster_estimated": round(reference_seconds / own_seconds, 1),
        **context(),
    }
    merge_table(table_path("scale"), [row], ("date", "commit"))
    print(row)


if __name__ == "__main__":
    main()
