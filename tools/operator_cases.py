"""Random calls of the operators, for fuzz_operators.py: mostly ones that fit, in every layout."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from colorseg import reference

REFUSALS = (RuntimeError, TypeError, ValueError)
REFERENCE_REFUSES = (*REFUSALS, AssertionError, IndexError, NotImplementedError)


@dataclass
class Case:
    """One call: tensors by argument name, and the options."""

    operator: str
    tensors: dict[str, Tensor | None] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    finite: bool = True  # otherwise nothing is compared: it must not crash

    def dtype(self) -> torch.dtype:
        """Of the first tensor."""
        first = next(iter(self.tensors.values()))
        assert first is not None
        return first.dtype

    def text(self) -> str:
        """What tells a reader which call it is."""
        shapes = {
            name: f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}/{list(t.stride())}"
            for name, t in self.tensors.items()
            if t is not None
        }
        return f"{self.operator} {shapes} {self.options}"


class Draw:
    """Random parts of a case, the same for the same number."""

    def __init__(self, seed: int, number: int) -> None:
        self.choose = random.Random(f"{seed} {number}")
        self.generator = torch.Generator().manual_seed(self.choose.randrange(2**60))

    def chance(self, share: float) -> bool:
        """True in that share of cases."""
        return self.choose.random() < share

    def size(self, most: int) -> int:
        """Often small, sometimes 0."""
        return self.choose.choice([0 if self.chance(0.1) else 1, 2, 3, *range(1, most + 1)])

    def values(self, shape: list[int], dtype: torch.dtype) -> Tensor:
        """Normal numbers of a random scale, in a random layout."""
        scale = 10.0 ** self.choose.randrange(-2, 3)
        return self.laid_out(
            scale * torch.randn(shape, generator=self.generator, dtype=torch.float64), dtype
        )

    def integers(self, low: int, high: int, shape: list[int], dtype: torch.dtype) -> Tensor:
        """From low to below high, in a random layout."""
        return self.laid_out(
            torch.randint(low, max(high, low + 1), shape, generator=self.generator), dtype
        )

    def laid_out(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The same values with other strides."""
        values = values.to(dtype)
        kind = self.choose.randrange(8)
        if kind == 0 and values.dim() == 4:
            return values.to(memory_format=torch.channels_last)
        if kind == 1 and values.dim() > 1:
            order = list(range(values.dim()))
            self.choose.shuffle(order)
            back = [order.index(i) for i in range(len(order))]
            return values.permute(order).contiguous().permute(back)
        if kind == 2 and values.dim():
            return torch.stack([values, values + 1], -1)[..., 0]
        if kind == 3 and values.dim() and values.shape[0]:
            return torch.cat([values[:1], values, values[:1]])[1:-1]
        if kind == 4 and values.dim() and values.numel():
            dim = self.choose.randrange(min(2, values.dim()))  # pixels alike would all be ties
            return values.narrow(dim, 0, 1).expand(values.shape)
        return values

    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return self.choose.choice([torch.float64] * 2 + [torch.float32] * 4 + [torch.bfloat16])


def conv2d(draw: Draw, operator: str = "conv2d") -> Case:
    """Of any geometry, mostly one that fits."""
    choose, dtype = draw.choose, draw.dtype()
    channels, results = choose.choice([1, 2, 3, 8, 24, draw.size(40)]), draw.size(40)
    groups, transposed = 1, draw.chance(0.25)
    if draw.chance(0.15):
        groups = choose.choice([2, 3])
        channels, results = groups * draw.size(4), groups * draw.size(4)
    skipped = draw.size(3) if draw.chance(0.2) and channels > 1 and groups == 1 else 0
    image = [draw.size(3), draw.size(20), draw.size(36)]

    def pair(*values: int) -> Any:
        both = choose.choice(values), choose.choice(values)
        return both if draw.chance(0.3) else both[0]

    stride, dilation = pair(1, 1, 1, 2, 2, 3), pair(1, 1, 1, 1, 2, 3)
    padding = "same" if draw.chance(0.05) else pair(0, 1, 1, 1, 2, 3)
    kernel = [choose.choice([3, 3, 3, 1, 2, 4, 5]) for _ in range(2)]
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        options |= {"transposed": True, "output_padding": pair(0, 0, 1)}
    inner = [channels + skipped, results // groups] if transposed else None
    weight = [*(inner or [results, (channels + skipped) // groups]), *kernel]
    if draw.chance(0.04):  # does not fit
        weight[choose.randrange(4)] += 1
    tensors = {
        "x": draw.values([image[0], channels, *image[1:]], dtype),
        "weight": draw.values(weight, dtype),
        "bias": draw.values([results], dtype) if draw.chance(0.5) else None,
    }
    case = Case(operator, tensors, options)
    if skipped:
        tensors["skip"] = draw.values([image[0], skipped, *image[1:]], dtype)
    return case


def conv_bn_relu(draw: Draw) -> Case:
    """With its batch norm, resampling and residual."""
    case, choose = conv2d(draw, "conv_bn_relu"), draw.choose
    dtype, channels = case.tensors["x"].dtype, 0  # type: ignore[union-attr]
    try:
        wide = {k: None if t is None else t.double() for k, t in case.tensors.items()}
        y = reference.conv2d(**wide, **case.options)  # type: ignore[arg-type]
        channels = y.shape[1]
    except REFERENCE_REFUSES:
        y = None
    small = choose.choice([dtype, torch.float32]) if dtype == torch.bfloat16 else dtype

    def per_channel(positive: bool = False) -> Tensor | None:
        values = draw.values([channels], small)
        return values.abs() + 0.1 if positive else values

    case.options["training"] = training = draw.chance(0.6)
    keeps = draw.chance(0.7) or not training
    if dtype == torch.bfloat16 and training:
        case.tensors["bias"] = None  # in front of batch norm a large one leaves no digits
    case.tensors |= {
        "bn_weight": per_channel() if draw.chance(0.7) else None,
        "bn_bias": per_channel() if draw.chance(0.7) else None,
        "running_mean": per_channel() if keeps else None,
        "running_var": per_channel(positive=True) if keeps else None,
    }
    case.options |= {
        "relu": draw.chance(0.8), "momentum": choose.choice([0.1, 0.0, 1.0]),
        "eps": choose.choice([1e-5, 1e-3]),
        "resample": choose.choice([None, None, "maxpool2", "upsample2"]),
    }  # fmt: skip
    if y is not None and case.options["resample"] is None and draw.chance(0.15):
        case.tensors["residual"] = draw.values(list(y.shape), dtype)
    return case


def color_cross_entropy(draw: Draw) -> Case:
    """Of labels, or of pixels quantised or softly encoded with a palette."""
    choose, dtype = draw.choose, draw.dtype()
    n, colors, image = draw.size(3), draw.size(40), [draw.size(9), draw.size(40)]
    logits = draw.values([n, colors, *image], dtype)
    wide = torch.float32 if dtype == torch.bfloat16 else dtype
    case = Case("color_cross_entropy", {"logits": logits})
    case.options = {
        "label_smoothing": choose.choice([0.0, 0.0, 0.1, 0.9]),
        "reduction": choose.choice(["mean", "mean", "sum", "none"]),
    }
    ignore = choose.choice([None, None, -1, 0, 2, 255])
    if ignore is not None:
        case.options["ignore_index"] = ignore
    if draw.chance(0.5):
        kind = choose.choice([torch.int64, torch.uint8])
        target = draw.integers(0, colors + draw.chance(0.05), [n, *image], kind)
        if ignore is not None and ignore >= 0 and target.numel():
            target = target.clone()
            target[0, 0, 0] = ignore
        case.tensors["target"] = target
    else:
        case.tensors["target"] = pixels(draw, [n, 3, *image], wide)
        case.tensors["palette"] = torch.rand(colors, 3, generator=draw.generator).to(wide)
        if draw.chance(0.3):
            case.options |= {"soft_neighbors": choose.randrange(1, 7), "soft_sigma": 0.05}
    if draw.chance(0.3):
        case.tensors["weight"] = draw.values([colors], wide).abs()
    return case


def pixels(draw: Draw, shape: list[int], dtype: torch.dtype) -> Tensor:
    """RGB from 0 to 1, or bytes."""
    if draw.chance(0.5):
        return draw.integers(0, 256, shape, torch.uint8)
    return draw.laid_out(torch.rand(shape, generator=draw.generator, dtype=torch.float64), dtype)


def soft_iou_loss(draw: Draw) -> Case:
    """Of two classes, or of more."""
    choose, dtype = draw.choose, draw.dtype()
    n, classes = draw.size(3), choose.choice([2, 2, 2, 3, 5, 21, draw.size(4)])
    image = [draw.size(12), draw.size(40)]
    logits = draw.values([n, classes, *image], dtype)
    kinds = [torch.int64, torch.int64, torch.uint8, torch.bool]
    target = draw.integers(0, classes + draw.chance(0.05), [n, *image], choose.choice(kinds))
    case = Case("soft_iou_loss", {"logits": logits, "target": target})
    ids = [choose.randrange(max(classes, 1)) for _ in range(choose.randrange(1, 4))]
    case.options = {
        "classes": choose.choice(["foreground", "all", ids]),
        "per": choose.choice(["batch", "image"]),
        "smooth": choose.choice([1e-6, 1.0, (0.0, 1e-6), (1.0, 2.0)]),
        "reduction": choose.choice(["mean", "sum", "none"]),
    }
    if draw.chance(0.3):
        case.options["ignore_index"] = choose.choice([0, 1, 255, -1])
    if draw.chance(0.3):
        chosen = case.options["classes"]
        count = {"foreground": classes - 1, "all": classes}.get(str(chosen), len(chosen))
        wide = torch.float32 if dtype == torch.bfloat16 else dtype
        case.tensors["weight"] = draw.values([max(count, 0)], wide).abs() + 0.1
    return case


def nearest_color(draw: Draw) -> Case:
    """Labels of pixels."""
    dtype = draw.choose.choice([torch.float32, torch.float64])
    shape = [draw.size(3), 3, draw.size(12), draw.size(40)]
    palette = torch.rand(draw.size(40), 3, generator=draw.generator).to(dtype)
    case = Case("nearest_color", {"rgb": pixels(draw, shape, dtype), "palette": palette})
    case.options["dtype"] = draw.choose.choice([torch.int64, torch.uint8])
    return case


OPERATORS: dict[str, Callable[[Draw], Case]] = {
    make.__name__: make
    for make in (conv2d, conv_bn_relu, color_cross_entropy, soft_iou_loss, nearest_color)
}


def drawn(seed: int, number: int, operator: str | None) -> tuple[Case, Draw]:
    """The case of that number."""
    draw = Draw(seed, number)
    case = OPERATORS[operator or draw.choose.choice(list(OPERATORS))](draw)
    first = next(iter(case.tensors.values()))
    assert first is not None
    if first.dtype.is_floating_point and first.numel() and draw.chance(0.03):
        name, case.finite = next(iter(case.tensors)), False
        changed = first.clone()
        changed[(0,) * changed.dim()] = draw.choose.choice([math.nan, math.inf, -math.inf])
        case.tensors[name] = changed
    return case, draw
