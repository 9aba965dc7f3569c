# SPDX-License-Identifier: Apache-2.0
"""Networks that find things in pictures, and what all detectors share: scenes, boxes, average precision."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.kinds.kind import Kind
from benchmarks.kinds.parts import (
    colours,
    conv,
    inputs_of,
    loss_of,
    measure_of,
    paint,
    shape_masks,
    smooth,
    uniform,
)

# Types of shapes of which all fill their boxes.
_TYPES = torch.tensor([0, 1, 3, 2, 8])


def scene(
    n: int, generator: torch.Generator, *, size: int, n_classes: int, radii: Sequence[tuple[float, float]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Pictures with one thing for each range of radii, small ones in front.

    Returns:
        Pictures (N, 3, size, size) in 0 to 1; classes (N, M); boxes (N, M, 4), x1, y1, x2, y2 in pixels.
    """
    picture = 0.5 + 0.12 * smooth(n, 3, size, generator)
    classes, boxes = [], []
    for low, high in radii:
        index = torch.randint(n_classes, (n,), generator=generator)
        radius = uniform((n, 2), low, high, generator)
        centre = radius + torch.rand(n, 2, generator=generator) * (size - 2 * radius)
        picture = paint(picture, shape_masks(_TYPES[index], centre, radius, size), colours(n, 3, generator))
        classes.append(index)
        boxes.append(torch.cat([centre - radius, centre + radius], 1))
    picture = picture + 0.03 * torch.randn(picture.shape, generator=generator)
    return picture, torch.stack(classes, 1), torch.stack(boxes, 1)


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) that broadcast against each other."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp_min(0).prod(-1)
    areas = [(box[..., 2:] - box[..., :2]).clamp_min(0).prod(-1) for box in (a, b)]
    return both / (areas[0] + areas[1] - both).clamp_min(1e-6)


def average_precision(scores: Tensor, boxes: Tensor, true_classes: Tensor, true_boxes: Tensor) -> float:
    """Average precision at an IoU of 0.5 in %, all classes in one list.

    Args:
        scores: (N, P, C) of every place and class.
        boxes: (N, P, 4) x1, y1, x2, y2.
        true_classes: (N, M).
        true_boxes: (N, M, 4).
    """
    best, classes = scores.max(2)
    best, order = best.topk(min(20, best.shape[1]), dim=1)
    classes = classes.gather(1, order)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4))
    twin = (box_iou(boxes[:, :, None], boxes[:, None]) > 0.5) & (classes[:, :, None] == classes[:, None])
    match = (box_iou(boxes[:, :, None], true_boxes[:, None]) > 0.5) & (
        classes[:, :, None] == true_classes[:, None]
    )
    keep = torch.ones_like(best, dtype=torch.bool)
    free = torch.ones_like(true_classes, dtype=torch.bool)
    hits = torch.zeros_like(keep)
    for k in range(best.shape[1]):
        keep[:, k] &= ~(twin[:, k, :k] & keep[:, :k]).any(1)
        found = match[:, k] & free & keep[:, k, None]
        hits[:, k] = found.any(1)
        first = functional.one_hot(found.int().argmax(1), found.shape[1]).bool() & found
        free &= ~first
    order = best[keep].argsort(descending=True)
    hit = hits[keep][order].double()
    precision = hit.cumsum(0) / torch.arange(1, len(hit) + 1)
    # Precision at a recall is the best one at that recall or a higher one.
    precision = precision.flip(0).cummax(0).values.flip(0)
    return 100 * float((precision * hit).sum() / true_classes.numel())


def _one_box(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    picture, _, boxes = scene(n, generator, size=48, n_classes=5, radii=((5, 18),))
    return picture, boxes[:, 0]


class BoxNet(nn.Module):
    """The one box in a picture, in pixels."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.Hardswish()
        self.features = nn.Sequential(
            conv(3, 16, act, stride=2),
            conv(16, 32, act, stride=2),
            conv(32, 48, act, stride=2),
            conv(48, 24, act),
        )
        self.head = nn.Sequential(nn.Linear(24 * 36, 24), nn.ReLU(), nn.Linear(24, 4))

    def forward(self, x: Tensor) -> Tensor:
        """(N, 4): x1, y1, x2, y2."""
        return self.head(self.features(x).flatten(1)) * 12 + 24


def _two_things(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return scene(n, generator, size=40, n_classes=3, radii=((6, 11), (4, 6)))


class Queries(nn.Module):
    """A transformer over the cells of a small picture: each cell says a class (or nothing) and a box."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.features = nn.Sequential(
            conv(3, 24, nn.GELU(), stride=2),
            conv(24, 32, nn.GELU(), stride=2),
            conv(32, width, nn.GELU(), stride=2),
        )
        self.position = nn.Parameter(0.1 * torch.randn(1, 25, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.class_head = nn.Linear(width, 4)
        self.box_head = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Logits (N, 25, 4), the last class is nothing; boxes (N, 25, 4), centre and size in 0 to 1."""
        x = self.features(2 * x - 1).flatten(2).transpose(1, 2) + self.position
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.fc2(functional.gelu(self.fc1(self.norm2(x))))
        return {"class_logits": self.class_head(x), "boxes": self.box_head(x).sigmoid()}


def _query_corners(boxes: Tensor) -> Tensor:
    """x1, y1, x2, y2 in pixels."""
    return 40 * torch.cat([boxes[..., :2] - boxes[..., 2:] / 2, boxes[..., :2] + boxes[..., 2:] / 2], -1)


def _query_loss(model: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    picture, classes, boxes = _two_things(n, generator)
    found = model(picture)
    centre = (boxes[..., :2] + boxes[..., 2:]) / 2
    cells = (centre / 8).long()
    query = cells[..., 0] + 5 * cells[..., 1]
    target = torch.full((n, 25), 3)
    target.scatter_(1, query, classes)
    weight = torch.tensor([1.0, 1.0, 1.0, 0.2])
    loss = functional.cross_entropy(found["class_logits"].flatten(0, 1), target.flatten(), weight)
    chosen = found["boxes"].gather(1, query[..., None].expand(-1, -1, 4))
    true = torch.cat([centre, boxes[..., 2:] - boxes[..., :2]], -1) / 40
    overlap = box_iou(_query_corners(chosen), boxes)
    return loss + 5 * functional.l1_loss(chosen, true) + 1 - overlap.mean()


def _query_measure(model: nn.Module, generator: torch.Generator) -> float:
    picture, classes, boxes = _two_things(700, generator)
    found = model(picture)
    scores = found["class_logits"].softmax(2)[..., :3]
    return average_precision(scores, _query_corners(found["boxes"]), classes, boxes)


KINDS = (
    Kind(
        name="boxes-pixels",
        build=BoxNet,
        loss=loss_of(_one_box, functional.smooth_l1_loss),
        inputs=inputs_of(_one_box),
        measure=measure_of(
            _one_box, lambda output, target: 100 * float(box_iou(output, target).mean()), 1000
        ),
        measured="mean IoU, %",
        higher_is_better=True,
        right={"": "gaussian"},
        harmless={"": ("categorical", "bernoulli")},
        steps=900,
        lr=4e-3,
        macs=0.4,
    ),
    Kind(
        name="queries",
        build=Queries,
        loss=_query_loss,
        inputs=lambda n, generator: _two_things(n, generator)[0],
        measure=_query_measure,
        measured="AP at IoU 0.5, %",
        higher_is_better=True,
        right={"class_logits": "categorical", "boxes": "gaussian"},
        harmless={"class_logits": ("bernoulli", "gaussian"), "boxes": ("bernoulli",)},
        steps=1500,
        lr=3e-3,
        macs=0.5,
    ),
)
