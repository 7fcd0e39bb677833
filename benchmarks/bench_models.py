"""The three networks and sizes in general: training steps and inference; `colorseg benchmark`."""

import sys

from colorseg.benchmark import main
from colorseg.benchmark.models import cases

if __name__ == "__main__":
    sys.exit(main(cases()))
