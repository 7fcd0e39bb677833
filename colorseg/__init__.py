"""Fused conv + batch norm + ReLU blocks and segmentation losses for PyTorch, and networks on them.

The package is lazy: the compiled operators load with ``ops``, ``nn`` or ``models``; ``reference``
needs torch alone.
"""

import importlib
from typing import Any

from colorseg._version import __version__

_MODULES = (
    "benchmark",
    "data",
    "metrics",
    "models",
    "nn",
    "ops",
    "palette",
    "photos",
    "reference",
    "report",
    "training",
)
_FUNCTIONS = {
    "build_info": "colorseg._extension",
    "colorize": "colorseg.photos",
    "export": "colorseg.exporting",
    "freeze": "colorseg.nn",
    "fuse": "colorseg.nn",
    "limit_kept_memory": "colorseg._extension",
    "optimize_for_inference": "colorseg.inference",
    "segment": "colorseg.photos",
    "unfuse": "colorseg.nn",
}

__all__ = ["__version__", *_MODULES, *_FUNCTIONS]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"colorseg.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'colorseg' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
