"""The soft IoU of the batches of several processes together."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from colorseg.ops._registration import arithmetic_dtype, refuse_second_derivative


class GroupSoftIoU(torch.autograd.Function):
    """Intersections and unions are added up over the ranks; every rank gets the same loss.

    Of the gradient each rank has the part of its own pictures, times the number of ranks: the mean
    over the ranks that ``DistributedDataParallel`` takes is then the gradient of the loss.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, options: Any, group: Any) -> Tensor:
        classes, smooth, ignore_index, weight, reduction, keep = options
        with torch._C._AutoDispatchBelowAutograd():
            _, sums, kept = torch.ops.colorseg.soft_iou_loss.default(
                logits, target, classes, False, *smooth, ignore_index, weight, "none", keep
            )
        dist.all_reduce(sums, group=group)
        intersection, union = sums[0].unbind(1)
        losses = 1 - (intersection + smooth[0]) / (union + smooth[1])
        if weight is not None:
            losses = losses * (weight / weight.mean())
        if reduction != "none":
            losses = losses.mean() if reduction == "mean" else losses.sum()
        ctx.ranks = dist.get_world_size(group)
        ctx.options = classes, False, *smooth, 255 if keep else ignore_index
        ctx.reduction = reduction
        ctx.save_for_backward(logits, kept if keep else target, sums, weight)
        return losses.to(arithmetic_dtype(logits))

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> Any:
        refuse_second_derivative(
            "soft_iou_loss of a process_group", "colorseg.reference.soft_iou_loss"
        )
        *tensors, weight = ctx.saved_tensors
        with torch._C._AutoDispatchBelowAutograd():
            grad = torch.ops.colorseg.soft_iou_loss_backward.default(
                grad_loss * ctx.ranks, *tensors, *ctx.options, weight, ctx.reduction
            )
        return grad, None, None, None
