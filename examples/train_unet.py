"""Train UNet to colorize grey pictures; ``--help`` lists the settings."""

import sys

from colorseg.training.command import main

if __name__ == "__main__":
    sys.exit(main("unet"))
