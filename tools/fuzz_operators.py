"""Draw shapes, strides, dtypes and options, and compare the operators with the reference.

    python tools/fuzz_operators.py --cases 50000 --seed 0 [--operator NAME]

A result or gradient that differs from the reference in float64, a refusal that is no RuntimeError,
TypeError or ValueError, or a crash is a finding; "--only NUMBER" runs its case again, and the exit
code is 1.  What is refused although the reference computes it is counted by message.
"""

import argparse
import json
import math
import random
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colorseg import ops, reference

REFUSALS = (RuntimeError, TypeError, ValueError)
REFERENCE_REFUSES = (*REFUSALS, AssertionError, IndexError, NotImplementedError)
OPERATORS = ["conv2d", "conv_bn_relu", "color_cross_entropy", "soft_iou_loss", "nearest_color"]
# Norm of the error by the norm.  What rounding may decide (a ReLU, the larger of two, a nearest
# color) is rare in random numbers, but 1e-7 is magnified by gradients of batch norm of few values.
ALLOWED = {torch.float64: 1e-7, torch.float32: 2e-3, torch.bfloat16: 0.1}


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
        case.tensors["target"] = draw.integers(
            0, colors + draw.chance(0.05), [n, *image], choose.choice([torch.int64, torch.uint8])
        )
        if ignore is not None and ignore >= 0 and case.tensors["target"].numel():  # type: ignore[union-attr]
            case.tensors["target"] = case.tensors["target"].clone()  # type: ignore[union-attr]
            case.tensors["target"][0, 0, 0] = ignore  # type: ignore[index]
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


def drawn(seed: int, number: int, operator: str | None) -> tuple[Case, Draw]:
    """The case of that number."""
    draw = Draw(seed, number)
    make: Callable[[Draw], Case] = globals()[operator or draw.choose.choice(OPERATORS)]
    case = make(draw)
    first = next(iter(case.tensors.values()))
    assert first is not None
    if first.dtype.is_floating_point and first.numel() and draw.chance(0.03):
        name, case.finite = next(iter(case.tensors)), False
        changed = first.clone()
        changed[(0,) * changed.dim()] = draw.choose.choice([math.nan, math.inf, -math.inf])
        case.tensors[name] = changed
    return case, draw


def outcome(
    module: Any, case: Case, gradients: list[str], seed: int, dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Results, statistics that were moved, and gradients; in ``dtype`` if given."""
    tensors = {}
    for name, t in case.tensors.items():
        if t is not None and dtype is not None and t.dtype.is_floating_point:
            t = t.to(dtype)
        if t is not None and name in ("running_mean", "running_var"):
            t = t.clone()
        if t is not None and module is reference and t.dim() == 1:
            t = t.contiguous()  # torch's backward of batch norm in channels_last takes it for that
        tensors[name] = t
    leaves = []
    for name in gradients:
        tensors[name] = leaf = tensors[name].detach().requires_grad_()  # type: ignore[union-attr]
        leaves.append(leaf)
    given = getattr(module, case.operator)(**tensors, **case.options)
    results = list(given) if isinstance(given, tuple) else [given]
    if leaves:
        generator = torch.Generator().manual_seed(seed)
        y = results[0]
        upstream = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
        # what a result does not depend on has the gradient 0
        found = torch.autograd.grad(y, leaves, upstream, allow_unused=True)
        pairs = zip(found, leaves, strict=True)
        results += [torch.zeros_like(t) if g is None else g for g, t in pairs]
    moved = [tensors.get(name) for name in ("running_mean", "running_var")]
    return [t.detach() for t in [*results, *moved] if t is not None]


def difference(
    got: list[Tensor], want: list[Tensor], plain: list[Tensor], largest: float, dtype: torch.dtype
) -> str | None:
    """What is wrong with a result of a case of that dtype.

    ``plain`` is what the reference makes of it in that dtype, ``largest`` the largest
    sum to be expected of what is given: rounding may leave a part of it where the result is 0.
    """
    if len(got) != len(want):
        return f"{len(got)} results instead of {len(want)}"
    for i, (g, w, p) in enumerate(zip(got, want, plain, strict=True)):
        if g.shape != w.shape:
            return f"result {i} has shape {list(g.shape)} instead of {list(w.shape)}"
        if not g.dtype.is_floating_point:
            if torch.equal(g.long(), w.long()) or not torch.equal(p.long(), w.long()):
                continue  # rounding decides
            return f"result {i}: {(g.long() != w.long()).sum()} of {g.numel()} differ"
        scale = max(w.norm().item(), 1e-3 * max(t.double().norm().item() for t in want))
        error, plain_error = ((t.double() - w).norm().item() for t in (g, p))
        rest = 8 * torch.finfo(dtype).eps * largest
        if math.isnan(error) and math.isnan(plain_error):
            continue
        if not error <= 8 * plain_error + ALLOWED[dtype] * scale + rest:
            return f"result {i} is {error:.1e} off, torch {plain_error:.1e}, of {scale:.1e}"
    return None


def rounding(case: Case) -> bool:
    """Whether a value in front of the ReLU is so near to 0 that its sign is a matter of rounding.

    One of two thousand is, by chance, a thousandth of the largest.
    """
    linear = Case(case.operator, case.tensors, case.options | {"relu": False})
    (values, *_) = outcome(reference, linear, [], 0, torch.float64)
    least, largest = values.abs().min().item(), values.abs().max().item()
    return least < 8 * torch.finfo(case.dtype()).eps * largest


def check(seed: int, number: int, operator: str | None, refused: Counter[str]) -> str | None:
    """Run a case; what is wrong with it, if anything is."""
    case, draw = drawn(seed, number, operator)
    could = [
        name
        for name in ("x", "weight", "bias", "bn_weight", "bn_bias", "skip", "residual", "logits")
        if case.tensors.get(name) is not None
        and not (name == "weight" and "logits" in case.tensors)
        # 0 but for rounding behind batch norm
        and not (name == "bias" and case.options.get("training"))
    ]
    gradients = [name for name in could if draw.chance(0.8)] if draw.chance(0.7) else []
    try:
        got, complaint = outcome(ops, case, gradients, number), ""
    except REFUSALS as error:
        got, complaint = [], str(error)
        if not complaint or "INTERNAL ASSERT" in complaint:
            return f"{type(error).__name__} {complaint!r}: {case.text()}"
    except Exception as error:
        return f"{type(error).__name__} {error}: {case.text()}"
    try:
        want = outcome(reference, case, gradients, number, torch.float64)
        # torch's own convolutions in bfloat16 crash with some strides
        half = case.dtype() == torch.bfloat16
        plain = outcome(reference, case, gradients, number, torch.float32 if half else None)
    except REFERENCE_REFUSES as error:
        if complaint:
            refused["by the reference, too"] += 1
            return None
        refused["by the reference alone: " + re.sub(r"\d+", "#", str(error))[:90]] += 1
        return None
    if complaint:
        refused["by the operator alone: " + re.sub(r"\d+", "#", complaint)[:90]] += 1
        return None
    if not case.finite:
        return None
    floats = [t for t in case.tensors.values() if t is not None and t.numel()]
    largest = max([1.0, *(t.double().abs().max().item() * t.numel() ** 0.5 for t in floats)])
    wrong = difference(got, want, plain, largest, case.dtype())
    if wrong and case.operator == "conv_bn_relu" and case.options["relu"] and rounding(case):
        refused["nothing, but rounding decides a ReLU"] += 1
        return None
    return f"{wrong}: gradients of {gradients}, {case.text()}" if wrong else None


def work(args: argparse.Namespace) -> int:
    """The cases from --first on; the file --at says which one is being run."""
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    refused: Counter[str] = Counter()
    findings = 0
    with open(args.at, "w") as at:
        for number in range(args.first, args.cases):
            at.seek(0)
            at.write(f"{number:<20}")
            at.flush()
            if wrong := check(args.seed, number, args.operator, refused):
                findings += 1
                print(f"case {number}: {wrong}", flush=True)
    done = {"cases": args.cases - args.first, "findings": findings, "seed": args.seed}
    print(json.dumps(done | {"refused": dict(refused.most_common())}, indent=1))
    return int(findings > 0)


def main() -> int:
    """0 without findings."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--cases", type=int, default=2000)
    add("--seed", type=int, default=0)
    add("--operator", choices=OPERATORS)
    add("--threads", type=int, default=2)
    add("--only", type=int, metavar="NUMBER", help="this case alone")
    add("--first", type=int, default=0, help=argparse.SUPPRESS)
    add("--at", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only is not None:
        args.first, args.cases = args.only, args.only + 1
    if args.at:
        return work(args)
    code = 0
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "at"
        while args.first < args.cases:  # again behind a case that ended the process
            options = [f"--{k}={getattr(args, k)}" for k in ("cases", "seed", "threads", "first")]
            if args.operator:
                options.append(f"--operator={args.operator}")
            command = [sys.executable, "-P", __file__, *options, f"--at={at}"]
            returned = subprocess.run(command).returncode
            if returned in (0, 1):
                return max(code, returned)
            code, args.first = 1, int(at.read_text()) + 1
            print(f"case {args.first - 1} ended the process with code {returned}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
