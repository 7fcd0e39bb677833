"""Loads the compiled extension, or says what to do; tells what was built."""

from types import ModuleType
from typing import Any

import torch

from colorseg._version import __version__


def load() -> ModuleType:
    """Return ``colorseg._C``; importing it registers the operators under ``torch.ops.colorseg``."""
    try:
        from colorseg import _C
    except ImportError as error:
        if "COLORSEG_CPU_ISA" in str(error):
            raise
        raise ImportError(
            f"colorseg's compiled operators could not be loaded with torch {torch.__version__}: "
            f"{error}. Build them for this environment with `pip install .` and start Python in "
            "another folder than the source tree, which hides what is installed, or with "
            "`pip install -e .` to work in the tree; colorseg.reference works without them."
        ) from error
    return _C


def build_info() -> dict[str, Any]:
    """Facts that belong into a bug report.

    Returns:
        version of colorseg, torch versions built against and running, whether CUDA kernels are in,
        their architectures, the CPU instruction set chosen and those available, whether it has
        bfloat16 kernels, torch's threads.
    """
    extension = load()
    return {
        "version": __version__,
        "torch_built": extension.torch_built,
        "torch_running": torch.__version__,
        "cuda": extension.cuda_built,
        "cuda_arch_list": list(extension.cuda_arch_list),
        "cpu_isa": extension.cpu_isa,
        "cpu_isas_available": list(extension.available_isas),
        "cpu_bfloat16": extension.cpu_bfloat16,
        "threads": torch.get_num_threads(),
    }


def limit_kept_memory(size: int) -> int:
    """Limit the memory that the operators keep on the CPU for their next tensors.

    A training step asks for the same maps as the step before it.  The system's allocator would
    return them to the system in between, which costs up to a third of a step.  ``torch.profiler``
    counts a tensor in kept memory with no bytes.

    Args:
        size: bytes that freed tensors may hold back; 256 MiB at first.  0 frees them at once, and
            leaves all memory to torch.

    Returns:
        the limit before.

    Raises:
        ValueError: ``size`` is negative.
    """
    if size < 0:
        raise ValueError(f"size must be at least 0 bytes, got {size}")
    return int(load().limit_kept_memory(size))
