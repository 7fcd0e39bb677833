"""Checks small cases of all networks and losses against float64: python benchmarks/gpu_parity.py.

Short enough for compute-sanitizer.  --device cpu tries the script out.
"""

import argparse
import sys

from gpu_cases import cases

from colorseg.benchmark import ParityError, check_parity


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--only", default="", metavar="TEXT", help="cases with TEXT in their name")
    args = parser.parse_args(argv)
    chosen = [case for case in cases(args.device, small=True) if args.only in str(case)]
    for case in chosen:
        try:
            check_parity(case.reference(), str(case), case.ours().results(), case.allowed)
        except ParityError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
    print(f"{len(chosen)} cases on {args.device} agree with float64")
    return 0 if chosen else 2


if __name__ == "__main__":
    sys.exit(main())
