"""Batch norm over the batches of all processes, where torch's own needs a GPU."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from colorseg.ops._registration import refuse_second_derivative


def run_norm(bn: nn.Module, x: Tensor) -> Tensor:
    """``bn(x)``; a ``SyncBatchNorm`` also on the CPU.

    In training its statistics are those of the batches of all ranks of ``bn.process_group``
    together, whose sizes may differ; a rank without pictures takes part.  The gradients of weight
    and bias are those of the rank's own batch, as in ``torch.nn.SyncBatchNorm``.
    """
    synchronizes = (
        type(bn) is nn.SyncBatchNorm
        and bn.training
        and x.device.type == "cpu"
        and dist.is_available()
        and dist.is_initialized()
    )
    if not synchronizes:
        return bn(x)
    norm: Any = bn
    group = norm.process_group or dist.group.WORLD
    y, mean, var, count = _Synchronized.apply(x, norm.weight, norm.bias, norm.eps, group)
    if norm.track_running_stats and norm.running_mean is not None:
        _follow(norm, mean, var, count)
    return y


@torch.no_grad()
def _follow(bn: Any, mean: Tensor, var: Tensor, count: Tensor) -> None:
    """Move the running statistics as ``BatchNorm2d`` does, with the unbiased variance."""
    bn.num_batches_tracked.add_(1)
    share = 1 / float(bn.num_batches_tracked) if bn.momentum is None else bn.momentum
    unbiased = var * count / (count - 1)
    bn.running_mean.lerp_(mean.to(bn.running_mean), share)
    bn.running_var.lerp_(unbiased.to(bn.running_var), share)


class _Synchronized(torch.autograd.Function):
    """Normalizes by the mean and variance of all ranks' values; both in double."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, group: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        values = x.double()
        count = values.new_tensor([x.numel() // x.shape[1]])
        total = torch.cat([values.sum((0, 2, 3)), count])
        dist.all_reduce(total, group=group)
        count = total[-1]
        if count <= 1:
            raise ValueError(
                f"batch norm needs more than one value per channel in all ranks together, got "
                f"{int(count)}"
            )
        mean = total[:-1] / count
        centered = values - mean.view(-1, 1, 1)
        squares = centered.square().sum((0, 2, 3))  # around the mean of all: nothing cancels
        dist.all_reduce(squares, group=group)
        var = squares / count
        scale = (var + eps).rsqrt()
        normalized = centered * scale.view(-1, 1, 1)
        y = normalized if weight is None else normalized * weight.view(-1, 1, 1)
        y = y if bias is None else y + bias.view(-1, 1, 1)
        ctx.group, ctx.has_bias = group, bias is not None
        ctx.save_for_backward(normalized.to(x.dtype), weight, scale, count)
        ctx.mark_non_differentiable(mean, var, count)
        return y.to(x.dtype), mean, var, count

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> Any:
        refuse_second_derivative("SyncBatchNorm on the CPU", "BatchNorm2d in one process")
        normalized, weight, scale, count = ctx.saved_tensors
        own, g = normalized.double(), grad.double()
        sums = torch.stack([g.sum((0, 2, 3)), (g * own).sum((0, 2, 3))])
        grad_bias, grad_weight = sums.clone()
        dist.all_reduce(sums, group=ctx.group)
        mean_g, mean_gx = (sums / count).view(2, -1, 1, 1)
        factor = scale if weight is None else scale * weight
        grad_x = (g - mean_g - own * mean_gx) * factor.view(-1, 1, 1)
        return (
            grad_x.to(grad.dtype),
            None if weight is None else grad_weight.to(weight.dtype),
            grad_bias.to(grad.dtype) if ctx.has_bias else None,
            None,
            None,
        )
