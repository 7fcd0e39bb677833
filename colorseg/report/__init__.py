"""The report in one command: all runs, tables, figures and pages, beside the published numbers."""

from colorseg.report.experiments import RECIPES, experiments
from colorseg.report.reproduction import PRESETS, reproduce

__all__ = ["PRESETS", "RECIPES", "experiments", "reproduce"]
