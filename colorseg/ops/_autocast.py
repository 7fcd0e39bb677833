"""What operators do under ``torch.autocast``."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from colorseg.ops._registration import is_half, needs_grad

_library = torch.library.Library("colorseg", "IMPL")


def register_autocast(
    name: str, cast: Sequence[int], widen: Sequence[int] = (), cpu: torch.dtype | None = None
) -> None:
    """Autocast the arguments of ``colorseg::name`` at the positions ``cast``.

    Half tensors at the positions ``widen`` (batch norm's) become float32.  On the CPU the dtype is
    ``cpu`` if given, and float32 for training and for dtypes without kernels.
    """
    op = getattr(torch.ops.colorseg, name).default

    def implement(device: str, key: str) -> None:
        keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

        def kernel(*args: Any) -> Any:
            dtype = torch.get_autocast_dtype(device)
            if device == "cpu":
                training = needs_grad(*(a for a in args if isinstance(a, Tensor)))
                half = dtype == torch.bfloat16 and not training
                dtype = cpu or (dtype if half else torch.float32)
            dtypes = dict.fromkeys(cast, dtype) | {
                i: torch.float32 for i in widen if is_half(args[i])
            }
            with torch._C._ExcludeDispatchKeyGuard(keys):
                return op(*(_cast(a, dtypes.get(i)) for i, a in enumerate(args)))

        _library.impl(name, kernel, key)

    implement("cpu", "AutocastCPU")
    implement("cuda", "AutocastCUDA")


def _cast(value: Any, dtype: torch.dtype | None) -> Any:
    if value is None or dtype is None or value.dtype == torch.float64:  # as torch's own autocast
        return value
    return value.to(dtype)
