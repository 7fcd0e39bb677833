"""Draw shapes, strides, dtypes and options, and compare the operators with the reference.

    python tools/fuzz_operators.py --cases 50000 --seed 0 [--operator NAME] [--simt]

A result or gradient that differs from the reference in float64, a refusal that is no RuntimeError,
TypeError or ValueError, or a crash is a finding; "--only NUMBER" runs its case again, and the exit
code is 1.  What is refused although the reference computes it is counted by message.  ``--simt``:
the CUDA kernels, in the emulation.
"""

import argparse
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from operator_cases import OPERATORS, REFERENCE_REFUSES, REFUSALS, Case, drawn
from torch import Tensor

from colorseg import ops, reference

# Norm of the error by the norm.  What rounding may decide (a ReLU, the larger of two, a nearest
# color) is rare in random numbers, but 1e-7 is magnified by gradients of batch norm of few values.
ALLOWED = {torch.float64: 1e-7, torch.float32: 2e-3, torch.bfloat16: 0.1}


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
    if args.simt:
        os.environ["COLORSEG_DEBUG"] = "1"  # labels out of range are errors, as on the CPU
        sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
        from simt.build import load

        load()
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
    add("--simt", action="store_true", help="the CUDA kernels, run on the CPU")
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
            if args.simt:
                options.append("--simt")
            if args.operator:
                options.append(f"--operator={args.operator}")
            command = [sys.executable, __file__, *options, f"--at={at}"]
            returned = subprocess.run(command).returncode
            if returned in (0, 1):
                return max(code, returned)
            code, args.first = 1, int(at.read_text()) + 1
            print(f"case {args.first - 1} ended the process with code {returned}", flush=True)
    return code


if __name__ == "__main__":
    sys.exit(main())
