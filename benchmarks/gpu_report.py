"""Everything about a GPU in one command: python benchmarks/gpu_report.py.

Runs the device tests, compute-sanitizer over a short parity run, and the benchmarks against all
peers; writes benchmarks/results/<gpu>.csv, a section of docs/gpu.md and docs/<gpu>.png.  --dry-run
takes the same way without a GPU, on small cases, and writes to --out alone.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from gpu_cases import cases

import colorseg
from colorseg._files import write_atomically
from colorseg.benchmark import ParityError, Place, Result, machine, run
from colorseg.benchmark.gpu import GPU
from colorseg.benchmark.limits import Limits
from colorseg.benchmark.timing import cpu_turn

ROOT = Path(__file__).parents[1]
SANITIZERS = ("memcheck", "racecheck")
DRY_PEERS = "eager"  # nothing to compile


def main(argv: Sequence[str] | None = None) -> int:
    """Write the report; 1 where a test failed or a result is wrong, 2 for a mistake."""
    args = parser().parse_args(argv)
    if not args.dry_run and not (torch.cuda.is_available() and colorseg.build_info()["cuda"]):
        return complain("this needs a GPU and a build with CUDA; --dry-run does without")
    if args.dry_run and args.out is None:
        return complain("a dry run writes nothing into the project; name a folder with --out")
    out = args.out or ROOT
    lines, failed = [], False
    checks = [] if args.skip_checks else [device_tests, *map(sanitizer, SANITIZERS)]
    for check in checks:
        line, ok = check(args.dry_run)
        print(line, flush=True)
        lines.append(line)
        failed |= not ok
    try:
        results, facts = measure(args, out)
    except ParityError as error:
        return complain(str(error), 1)
    except ValueError as error:
        return complain(str(error))
    write(out, args.dry_run, facts, lines, results)
    return 1 if failed else 0


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    add = parser.add_argument
    add("--only", default="", metavar="TEXT", help="cases with TEXT in their name")
    add("--peers", default="", metavar="NAME,...", help="against these peers alone")
    add("--seconds", type=float, default=float("inf"), help="begin no case after so many seconds")
    add("--quick", action="store_true", help="5 rounds instead of 20")
    add("--skip-checks", action="store_true", help="neither tests nor sanitizers")
    add("--out", type=Path, metavar="FOLDER", help="where to write (default: the project)")
    add("--dry-run", action="store_true", help="small cases on the CPU, to try the script out")
    return parser


def complain(message: str, code: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def device_tests(dry: bool) -> tuple[str, bool]:
    """What the tests that are marked cuda say; in a dry run those of one file."""
    files = ["tests/test_cuda.py"] if dry else []
    # -P: the installed package, not the source tree in the current folder
    command = [sys.executable, "-P", "-m", "pytest", "-m", "cuda", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    summary = (done.stdout.strip().splitlines() or ["no output"])[-1].strip("= ")
    return f"pytest -m cuda: {summary}", done.returncode == 0


def sanitizer(tool: str):
    """A check that runs the parity script under a tool of compute-sanitizer."""

    def check(dry: bool) -> tuple[str, bool]:
        script = [sys.executable, str(ROOT / "benchmarks" / "gpu_parity.py")]
        script += ["--only", "UNet", "--device", "cpu"] if dry else []
        program = shutil.which("compute-sanitizer")
        if program is None and not dry:
            return f"compute-sanitizer --tool {tool}: not run, the program was not found", False
        command = [program, "--tool", tool, "--error-exitcode", "9"] if program else []
        done = subprocess.run([*command, *script], cwd=ROOT, capture_output=True, text=True)
        output = (done.stdout + done.stderr).strip().splitlines() or ["no output"]
        return f"compute-sanitizer --tool {tool}: {output[-1].strip('= ')}", done.returncode == 0

    return check


def measure(args: argparse.Namespace, out: Path) -> tuple[list[Result], dict[str, object]]:
    """Times of all cases, appended to the CSV file."""
    place = Place(machine, Limits, cpu_turn) if args.dry_run else GPU
    facts = place.facts()
    csv = out / ("dry-run.csv" if args.dry_run else f"benchmarks/results/{slug(facts)}.csv")
    csv.parent.mkdir(parents=True, exist_ok=True)
    device = "cpu" if args.dry_run else "cuda"
    torch.backends.cudnn.benchmark = True  # peers at their best
    results, _ = run(
        cases(device, small=args.dry_run), csv=str(csv), only=args.only,
        peers=args.peers or (DRY_PEERS if args.dry_run else ""), quick=args.quick,
        seconds=args.seconds, place=place, report=lambda line: print(line, flush=True),
    )  # fmt: skip
    return results, facts


def slug(facts: dict[str, object]) -> str:
    """A file name from the GPU's."""
    return re.sub(r"[^a-z0-9]+", "-", str(facts["machine"]).split(",")[0].lower()).strip("-")


def write(
    out: Path, dry: bool, facts: dict[str, object], lines: Sequence[str], results: list[Result]
) -> None:
    """The section of the page, and the picture beside it."""
    name = "dry-run" if dry else slug(facts)
    page = out / ("dry-run.md" if dry else "docs/gpu.md")
    text = page.read_text() if page.exists() else "# GPUs\n"
    begin, end = f"<!-- {name} begins -->", f"<!-- {name} ends -->"
    section = "\n".join([begin, *section_of(facts, lines, results, name, dry), end])
    if begin in text:
        head, rest = text.split(begin)
        text = head + section + rest.split(end)[1]
    else:
        text = f"{text.rstrip()}\n\n{section}\n"
    write_atomically(page, text.encode())
    if results:
        draw(results, page.with_name(f"{name}.png"), "dry run" if dry else str(facts["machine"]))
    print(f"wrote {page}")


def section_of(
    facts: dict[str, object], lines: Sequence[str], results: list[Result], name: str, dry: bool
) -> list[str]:
    title = "Dry run on the CPU: no figure here says anything" if dry else str(facts["machine"])
    rows = [
        f"| {r.case.name} | {'x'.join(map(str, r.case.shape))} | {r.case.dtype} | "
        f"{r.case.direction} | {median_of(r.ours):.3g} | {r.best} | {r.ratio(r.best):.2f} | "
        f"{r.of_limit():.0f} |"
        for r in results
    ]
    said = [f"{datetime.now(UTC):%Y-%m-%d}", *(f"{k} {v}" for k, v in facts.items() if k != "date")]
    return [
        "", f"## {title}", "", ", ".join(said) + ".", "", *(f"- {line}" for line in lines), "",
        "| case | shape | arithmetic | what | ours, ms | best peer | ratio | % of the limit |",
        "|---|---|---|---|---|---|---|---|", *rows, "", f"![ratios]({name}.png)", "",
    ]  # fmt: skip


def median_of(times: Sequence[float]) -> float:
    return sorted(times)[len(times) // 2]


def draw(results: list[Result], path: Path, title: str) -> None:
    """A bar per case: how many times faster than the best peer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    height = 1.5 + 0.22 * len(results)
    figure, axes = pyplot.subplots(figsize=(9, height), layout="constrained")
    labels = [f"{r.case} ({r.best})" for r in results][::-1]
    ratios = [r.ratio(r.best) for r in results][::-1]
    axes.barh(labels, ratios, color=["#2a7" if ratio >= 1 else "#c53" for ratio in ratios])
    axes.axvline(1, color="black", linewidth=1)
    axes.bar_label(axes.containers[0], fmt="%.2f", fontsize=7, padding=2)
    axes.tick_params(axis="y", labelsize=7)
    axes.set(title=title, xlabel="times faster than the best peer, in brackets")
    with tempfile.NamedTemporaryFile(suffix=".png", dir=path.parent, delete=False) as file:
        figure.savefig(file.name, dpi=120)
    Path(file.name).replace(path)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
