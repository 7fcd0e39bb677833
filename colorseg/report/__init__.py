"""The report in one command: all runs, tables, figures and pages, beside the published numbers."""

from colorseg.report.reproduction import PRESETS, reproduce

__all__ = ["PRESETS", "reproduce"]
