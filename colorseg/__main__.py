"""``python -m colorseg``, the same as the ``colorseg`` command; for torchrun and the like."""

import sys

from colorseg.cli import main

if __name__ == "__main__":
    sys.exit(main())
