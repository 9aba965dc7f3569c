# SPDX-License-Identifier: Apache-2.0
"""Detectors whose outputs are raw maps, one for each scale: two YOLOs with anchors, an FCOS without."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits as yes_no_loss

from benchmarks.kinds.detecting import average_precision, box_iou, scene
from benchmarks.kinds.kind import Kind
from benchmarks.kinds.parts import Residual, conv

Scales = Sequence[tuple[int, Tensor]]


def _assigned(boxes: Tensor, scales: Scales) -> list[tuple[Tensor, ...]]:
    """Where each thing shall be found: at its centre, by the anchor that fits best.

    Returns:
        For each scale the indices of picture, anchor, row, column and thing.
    """
    size, centre = boxes[..., 2:] - boxes[..., :2], (boxes[..., 2:] + boxes[..., :2]) / 2
    anchors = torch.cat([anchors for _, anchors in scales])
    both = torch.minimum(size[:, :, None], anchors).prod(-1)
    best = (both / (size.prod(-1)[..., None] + anchors.prod(-1) - both)).argmax(-1)
    found, first = [], 0
    for stride, level in scales:
        picture, thing = ((best >= first) & (best < first + len(level))).nonzero(as_tuple=True)
        column, row = (centre[picture, thing] / stride).long().unbind(1)
        found.append((picture, best[picture, thing] - first, row, column, thing))
        first += len(level)
    return found


def _places(maps: Tensor, stride: int) -> Tensor:
    """Upper left corner of every cell (H, W, 2) of maps (N, A, H, W, ...), in pixels."""
    y, x = torch.meshgrid(torch.arange(maps.shape[2]), torch.arange(maps.shape[3]), indexing="ij")
    return torch.stack([x, y], -1).float() * stride


def _corners(centre: Tensor, size: Tensor) -> Tensor:
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def _boxes_v3(maps: Tensor, stride: int, anchors: Tensor) -> Tensor:
    """Boxes (N, A, H, W, 4) in pixels from maps (N, A, H, W, 5 + C), as YOLOv3 means them."""
    centre = _places(maps, stride) + maps[..., :2].sigmoid() * stride
    return _corners(centre, maps[..., 2:4].exp() * anchors[:, None, None])


def _boxes_v5(maps: Tensor, stride: int, anchors: Tensor) -> Tensor:
    """The same as YOLOv5 means them."""
    centre = _places(maps, stride) + (2 * maps[..., :2].sigmoid() - 0.5) * stride
    return _corners(centre, (2 * maps[..., 2:4].sigmoid()).square() * anchors[:, None, None])


def _split(maps: Tensor, n_anchors: int) -> Tensor:
    """(N, A, H, W, 5 + C) from (N, A * (5 + C), H, W)."""
    return maps.unflatten(1, (n_anchors, -1)).permute(0, 1, 3, 4, 2)


def _yolo_ap(
    maps: Sequence[Tensor], boxes: Sequence[Tensor], true_classes: Tensor, true_boxes: Tensor
) -> float:
    scores = torch.cat([(m[..., 4:5].sigmoid() * m[..., 5:].sigmoid()).flatten(1, 3) for m in maps], 1)
    return average_precision(scores, torch.cat([b.flatten(1, 3) for b in boxes], 1), true_classes, true_boxes)


_V3_SCALES: Scales = (
    (4, torch.tensor([[8.0, 8.0], [13.0, 13.0]])),
    (8, torch.tensor([[18.0, 18.0], [26.0, 26.0]])),
)


def _v3_scene(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return scene(n, generator, size=48, n_classes=4, radii=((8, 14), (4, 7)))


class YoloMaps(nn.Module):
    """YOLOv3 in small: raw maps at strides 4 and 8."""

    def __init__(self) -> None:
        super().__init__()
        act = nn.LeakyReLU(0.1)
        self.fine = nn.Sequential(
            conv(3, 16, act, stride=2), conv(16, 32, act, stride=2), Residual(32, act=act)
        )
        self.coarse = nn.Sequential(conv(32, 32, act, stride=2), conv(32, 32, act))
        self.side = conv(32, 20, act, kernel=1)
        self.neck = conv(52, 24, act)
        self.heads = nn.ModuleList([nn.Conv2d(24, 18, 1), nn.Conv2d(32, 18, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 18, 12, 12) and (N, 18, 6, 6) from (N, 3, 48, 48)."""
        fine = self.fine(2 * x - 1)
        coarse = self.coarse(fine)
        up = functional.interpolate(self.side(coarse), scale_factor=2.0)
        return [self.heads[0](self.neck(torch.cat([up, fine], 1))), self.heads[1](coarse)]


def _v3_loss(model: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    picture, classes, boxes = _v3_scene(n, generator)
    loss = picture.new_zeros(())
    for maps, (stride, anchors), index in zip(
        model(picture), _V3_SCALES, _assigned(boxes, _V3_SCALES), strict=True
    ):
        split, (image, anchor, row, column, thing) = _split(maps, len(anchors)), index
        there = torch.zeros(split.shape[:-1])
        there[image, anchor, row, column] = 1
        loss = loss + yes_no_loss(split[..., 4], there, reduction="sum")
        found, box = split[image, anchor, row, column], boxes[image, thing]
        share = (box[:, :2] + box[:, 2:]) / 2 / stride % 1
        size = ((box[:, 2:] - box[:, :2]) / anchors[anchor]).log()
        loss = loss + yes_no_loss(found[:, :2], share, reduction="sum")
        loss = loss + 2 * functional.mse_loss(found[:, 2:4], size, reduction="sum")
        kind = functional.one_hot(classes[image, thing], 4).float()
        loss = loss + yes_no_loss(found[:, 5:], kind, reduction="sum")
    return loss / n


def _v3_measure(model: nn.Module, generator: torch.Generator) -> float:
    picture, classes, boxes = _v3_scene(500, generator)
    maps = [_split(m, 2) for m in model(picture)]
    found = [_boxes_v3(m, *scale) for m, scale in zip(maps, _V3_SCALES, strict=True)]
    return _yolo_ap(maps, found, classes, boxes)


_V5_SCALES: Scales = (
    (8, torch.tensor([[9.0, 14.0], [14.0, 9.0], [13.0, 14.0]])),
    (16, torch.tensor([[22.0, 32.0], [32.0, 22.0], [32.0, 34.0]])),
)


def _v5_scene(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return scene(n, generator, size=64, n_classes=3, radii=((10, 18), (5, 8), (5, 8)))


class Csp(nn.Module):
    """YOLOv5's block: half of the channels pass a bottleneck, half go around it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.cv1, self.cv2 = (conv(channels, half, nn.SiLU(), kernel=1) for _ in range(2))
        self.inner = nn.Sequential(conv(half, half, nn.SiLU(), kernel=1), conv(half, half, nn.SiLU()))
        self.cv3 = conv(channels, channels, nn.SiLU(), kernel=1)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape as the input."""
        a = self.cv1(x)
        return self.cv3(torch.cat([a + self.inner(a), self.cv2(x)], 1))


class YoloLayout(nn.Module):
    """YOLOv5 in small, as it stands in training: anchors in a dimension of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv(3, 16, nn.SiLU(), 5, 2), conv(16, 32, nn.SiLU(), stride=2), Csp(32))
        self.fine = nn.Sequential(conv(32, 40, nn.SiLU(), stride=2), Csp(40))
        self.coarse = nn.Sequential(conv(40, 40, nn.SiLU(), stride=2), Csp(40))
        self.m = nn.ModuleList([nn.Conv2d(40, 24, 1), nn.Conv2d(40, 24, 1)])
        for head in self.m:
            # Few cells hold anything: the objectness starts low.
            nn.init.constant_(head.bias.data.view(3, 8)[:, 4], -4.0)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(N, 3, 8, 8, 8) and (N, 3, 4, 4, 8) from (N, 3, 64, 64)."""
        fine = self.fine(self.stem(x))
        maps = (self.m[0](fine), self.m[1](self.coarse(fine)))
        return [m.unflatten(1, (3, 8)).permute(0, 1, 3, 4, 2).contiguous() for m in maps]


def _v5_loss(model: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    picture, classes, boxes = _v5_scene(n, generator)
    loss = picture.new_zeros(())
    for maps, scale, index in zip(model(picture), _V5_SCALES, _assigned(boxes, _V5_SCALES), strict=True):
        image, anchor, row, column, thing = index
        box, target = _boxes_v5(maps, *scale)[image, anchor, row, column], boxes[image, thing]
        iou = box_iou(box, target)
        # Distance of the centres over the diagonal of the box around both (DIoU).
        span = torch.maximum(box[:, 2:], target[:, 2:]) - torch.minimum(box[:, :2], target[:, :2])
        away = (box[:, :2] + box[:, 2:] - target[:, :2] - target[:, 2:]).square().sum(1) / 4
        loss = loss + (1 - iou + away / span.square().sum(1)).sum()
        there = torch.zeros(maps.shape[:-1])
        there[image, anchor, row, column] = iou.detach()
        loss = loss + yes_no_loss(maps[..., 4], there, reduction="sum")
        kind = functional.one_hot(classes[image, thing], 3).float()
        loss = loss + yes_no_loss(maps[image, anchor, row, column, 5:], kind, reduction="sum")
    return loss / n


def _v5_measure(model: nn.Module, generator: torch.Generator) -> float:
    picture, classes, boxes = _v5_scene(500, generator)
    maps = model(picture)
    found = [_boxes_v5(m, *scale) for m, scale in zip(maps, _V5_SCALES, strict=True)]
    return _yolo_ap(maps, found, classes, boxes)


# Largest distance of a side that the finer scale takes, in pixels.
_FINE = 9
_STRIDES = (4, 8)


def _fcos_scene(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    return scene(n, generator, size=40, n_classes=5, radii=((7, 12), (3.5, 6)))


class Fcos(nn.Module):
    """FCOS in small: one head for both scales, boxes as distances to their sides in pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 24, stride=2), conv(24, 32, stride=2), conv(32, 32))
        self.down = nn.Conv2d(32, 32, 3, 2, 1)
        self.cls_tower, self.box_tower = (
            nn.Sequential(nn.Conv2d(32, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.ReLU()) for _ in range(2)
        )
        self.cls, self.box, self.centre = (nn.Conv2d(32, c, 3, padding=1) for c in (5, 4, 1))
        self.scales = nn.Parameter(torch.ones(2))
        nn.init.constant_(self.cls.bias, -4.0)

    def forward(self, x: Tensor) -> dict[str, list[Tensor]]:
        """For both scales: classes (N, 5, H, W), boxes (N, 4, H, W), centres (N, 1, H, W)."""
        fine = self.backbone(2 * x - 1)
        maps: dict[str, list[Tensor]] = {"cls": [], "box": [], "centre": []}
        for level, feature in enumerate((fine, self.down(fine))):
            maps["cls"].append(self.cls(self.cls_tower(feature)))
            box = self.box_tower(feature)
            maps["box"].append(_STRIDES[level] * (self.scales[level] * self.box(box)).clamp_max(4).exp())
            maps["centre"].append(self.centre(box))
        return maps


def _points(size: int, stride: int) -> Tensor:
    """Centres of the cells (H * W, 2), in pixels."""
    at = (torch.arange(size) + 0.5) * stride
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], -1).flatten(0, 1)


def _fcos_loss(model: nn.Module, n: int, generator: torch.Generator) -> Tensor:
    picture, classes, boxes = _fcos_scene(n, generator)
    maps = model(picture)
    loss, n_found = picture.new_zeros(()), 0
    for level, stride in enumerate(_STRIDES):
        points = _points(40 // stride, stride)
        cls, box, centre = (maps[key][level].flatten(2).transpose(1, 2) for key in ("cls", "box", "centre"))
        # (N, P, M, 4): left, top, right, bottom
        sides = torch.cat(
            [points[:, None] - boxes[:, None, :, :2], boxes[:, None, :, 2:] - points[:, None]], -1
        )
        reach = sides.amax(-1)
        inside = (sides.amin(-1) > 0) & ((reach < _FINE) if level == 0 else (reach >= _FINE))
        area = (boxes[..., 2:] - boxes[..., :2]).prod(-1)[:, None].expand_as(reach)
        thing = area.masked_fill(~inside, torch.inf).argmin(-1)
        image, point = inside.any(-1).nonzero(as_tuple=True)
        thing = thing[image, point]
        target = torch.zeros_like(cls)
        target[image, point, classes[image, thing]] = 1
        wrong = (target - cls.sigmoid()).abs()
        weight = (0.25 * target + 0.75 * (1 - target)) * wrong.square()
        loss = loss + (weight * yes_no_loss(cls, target, reduction="none")).sum()
        true, found = sides[image, point, thing], box[image, point]
        both = torch.minimum(true, found)
        both = (both[:, 0] + both[:, 2]) * (both[:, 1] + both[:, 3])
        areas = [(s[:, 0] + s[:, 2]) * (s[:, 1] + s[:, 3]) for s in (true, found)]
        loss = loss - (both / (areas[0] + areas[1] - both)).log().sum()
        pairs = true[:, :2], true[:, 2:]
        middle = (torch.minimum(*pairs) / torch.maximum(*pairs)).prod(1).sqrt()
        loss = loss + yes_no_loss(centre[image, point, 0], middle, reduction="sum")
        n_found += len(image)
    return loss / n_found


def _fcos_measure(model: nn.Module, generator: torch.Generator) -> float:
    picture, classes, boxes = _fcos_scene(500, generator)
    maps = model(picture)
    scores, found = [], []
    for level, stride in enumerate(_STRIDES):
        points = _points(40 // stride, stride)
        cls, box, centre = (maps[key][level].flatten(2).transpose(1, 2) for key in ("cls", "box", "centre"))
        scores.append((cls.sigmoid() * centre.sigmoid()).sqrt())
        found.append(torch.cat([points - box[..., :2], points + box[..., 2:]], -1))
    return average_precision(torch.cat(scores, 1), torch.cat(found, 1), classes, boxes)


def _pictures(
    draw: Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor]],
) -> Callable[[int, torch.Generator], Tensor]:
    return lambda n, generator: draw(n, generator)[0]


KINDS = (
    Kind(
        name="yolo-maps",
        build=YoloMaps,
        loss=_v3_loss,
        inputs=_pictures(_v3_scene),
        measure=_v3_measure,
        measured="AP at IoU 0.5, %",
        higher_is_better=True,
        right={"0": "bernoulli", "1": "bernoulli"},
        harmless={"0": ("gaussian",), "1": ("gaussian",)},
        steps=900,
        batch=24,
        lr=5e-3,
        macs=0.45,
    ),
    Kind(
        name="yolo-layout",
        build=YoloLayout,
        loss=_v5_loss,
        inputs=_pictures(_v5_scene),
        measure=_v5_measure,
        measured="AP at IoU 0.5, %",
        higher_is_better=True,
        right={"0": "bernoulli", "1": "bernoulli"},
        harmless={"0": ("categorical", "gaussian"), "1": ("categorical", "gaussian")},
        steps=900,
        batch=24,
        lr=5e-3,
        macs=0.5,
    ),
    Kind(
        name="fcos",
        build=Fcos,
        loss=_fcos_loss,
        inputs=_pictures(_fcos_scene),
        measure=_fcos_measure,
        measured="AP at IoU 0.5, %",
        higher_is_better=True,
        right={
            "cls.0": "bernoulli",
            "cls.1": "bernoulli",
            "box.0": "gaussian",
            "box.1": "gaussian",
            "centre.0": "bernoulli",
            "centre.1": "bernoulli",
        },
        harmless={
            "cls.0": ("gaussian",),
            "cls.1": ("gaussian",),
            "box.0": ("bernoulli",),
            "box.1": ("bernoulli",),
            "centre.0": ("gaussian",),
            "centre.1": ("gaussian",),
        },
        steps=900,
        batch=24,
        lr=5e-3,
        macs=0.45,
    ),
)
