"""Draws the roofline of a benchmark's CSV file: python benchmarks/roofline.py FILE.csv OUT.png."""

import argparse
import sys
from pathlib import Path

from colorseg.benchmark.records import Row, read

COLUMNS = ("op", "name", "shape", "direction", "rate", "flops", "bytes", "peak", "bandwidth")
MARKERS = "osD^vP*Xh<>p"


def draw(rows: list[Row], out: Path) -> None:
    """GFLOP/s over arithmetic intensity, under the limits measured in the same run.

    Cases without operations (losses) are left out.  The roof is the highest of all rows, the slope
    that of the lowest bandwidth: a copy from memory, not one within a cache.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import LogLocator

    rows = [row for row in rows if float(row["flops"]) and float(row["bytes"])]
    if not rows:
        raise ValueError("no row has both flops and bytes, so there is nothing to draw")
    figure, axes = pyplot.subplots(figsize=(10, 6), layout="constrained")
    intensity = [float(row["flops"]) / float(row["bytes"]) for row in rows]
    bandwidth = min(float(row["bandwidth"]) for row in rows)
    right = 2 * max(intensity)
    for dtype in sorted({row.get("dtype", "float32") for row in rows}):
        peak = max(float(r["peak"]) for r in rows if r.get("dtype", "float32") == dtype)
        ridge = peak / bandwidth
        left = min(*intensity, ridge) / 2
        x = [left, ridge, max(right, 2 * ridge)]
        label = f"{dtype}: {peak:.0f} GFLOP/s, copy {bandwidth:.0f} GB/s"
        axes.plot(x, [bandwidth * left, peak, peak], label=label)
    groups = sorted({f"{row['op']} {row['direction']}" for row in rows})
    for i, group in enumerate(groups):
        points = [
            (x, float(row["rate"]))
            for x, row in zip(intensity, rows, strict=True)
            if f"{row['op']} {row['direction']}" == group
        ]
        axes.plot(*zip(*points, strict=True), MARKERS[i % len(MARKERS)], label=group, alpha=0.8)
    highest: dict[str, tuple[float, float]] = {}  # one label for all directions of a case
    for x, row in zip(intensity, rows, strict=True):
        batch = f" {row['shape'].split('x')[0]}" if row["op"] == "models" else ""
        label, point = row["name"] + batch, (float(row["rate"]), x)
        highest[label] = max(point, highest.get(label, point))
    for label, (rate, x) in highest.items():
        place = {"textcoords": "offset points", "xytext": (5, 3), "fontsize": 7}
        axes.annotate(label, (x, rate), **place)
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity (FLOP / byte)")
    axes.set(ylabel="GFLOP/s, operations as written", title=rows[0].get("machine", ""))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(out, dpi=120)
    pyplot.close(figure)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("csv", type=Path, help="of a benchmark")
    parser.add_argument("out", type=Path, help="picture to write: .png, .svg, .pdf")
    args = parser.parse_args(argv)
    try:
        draw(read(args.csv, COLUMNS), args.out)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
