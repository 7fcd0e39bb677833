"""The whole report, beside what was published: python examples/reproduce_report.py --help."""

import sys

from colorseg.cli import main

if __name__ == "__main__":
    sys.exit(main(["reproduce", *sys.argv[1:]]))
