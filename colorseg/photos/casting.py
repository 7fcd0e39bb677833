"""Pictures as a network wants them: on its device, in its dtype."""

from itertools import chain

import torch
from torch import Tensor, nn

from colorseg.nn.packed import PackedChain


def cast_for(network: nn.Module, pictures: Tensor) -> Tensor:
    """``pictures`` on the device and in the dtype of the network's weights.

    Those are its first floating point parameter or buffer; packed weights in bfloat16 are neither.
    """
    weights = chain(network.parameters(), network.buffers())
    first = next((t for t in weights if t.is_floating_point()), None)
    if first is not None:
        return pictures.to(first.device, first.dtype)
    packed = (m.dtype for m in network.modules() if isinstance(m, PackedChain))
    return pictures.to(next(packed, torch.float32))
