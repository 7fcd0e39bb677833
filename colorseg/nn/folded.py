"""Convolutions with a batch norm folded into them, for inference."""

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorseg.nn import cudnn
from colorseg.nn.blocks import FusedForward
from colorseg.nn.forms import Form, ImagePooling
from colorseg.nn.functional import why_not_fusable
from colorseg.nn.inference import InferenceModule, refuse_gradient
from colorseg.nn.runs import Run, find_run, is_conv
from colorseg.ops._registration import traced

MAX_SHAPES = 64  # that are remembered


class FoldedConv2d(InferenceModule):
    """``bn(conv(x))`` in eval mode as one convolution, and what follows it in the same pass.

    Holds copies of the weights; later changes of the modules change nothing here.

    Args:
        conv: ``Conv2d`` with zero padding given as numbers.
        bn: ``BatchNorm2d`` with running statistics.
        dtype: of the folded weights, which are computed in float64.
        relu: whether calls without arguments end with a ReLU.

    Shape:
        forward(x, residual=None, relu=None): (N, C, H, W), (N, C_out, H_y, W_y) -> (N, C_out, H_y,
        W_y): the residual is added in front of the ReLU.
    """

    folded = True
    weight: Tensor
    bias: Tensor

    def __init__(self, conv: Any, bn: Any, dtype: torch.dtype, relu: bool = False) -> None:
        super().__init__()
        parameters = conv.bias, bn.weight, bn.bias
        conv_bias, gamma, beta = (t if t is None else t.detach().double() for t in parameters)
        scale = (bn.running_var.double() + bn.eps).rsqrt() * (1 if gamma is None else gamma)
        shift = (0 if conv_bias is None else conv_bias) - bn.running_mean.double()
        bias = shift * scale + (0 if beta is None else beta)
        weight = conv.weight.detach().double() * scale[:, None, None, None]
        layout = torch.channels_last
        self.register_buffer("weight", weight.to(dtype, memory_format=layout), persistent=False)
        self.register_buffer("bias", bias.to(dtype), persistent=False)
        self.stride, self.padding = conv.stride, conv.padding
        self.dilation, self.groups, self.relu = conv.dilation, conv.groups, relu
        self._forget()

    def _forget(self) -> None:
        self._packed: Tensor | None = None
        self._packings: dict[tuple[torch.Size, bool], int] = {}  # of x, and whether it is exact
        self._own: dict[int, Tensor] = {}  # of packings

    def _apply(self, *args: Any, **kwargs: Any) -> "FoldedConv2d":
        self._forget()  # what was packed has the dtype of before
        super()._apply(*args, **kwargs)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without packed weights, which neither copy nor pickle, and what suits this machine."""
        return {**self.__dict__, "_packed": None, "_packings": {}, "_own": {}}

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        relu: bool | None = None,
        overwrites: bool = False,
    ) -> Tensor:
        """``relu(conv(x) + residual)``, in the memory of the residual where it may and can be."""
        refuse_gradient(x)
        relu = self.relu if relu is None else relu
        options = self.padding, self.stride, self.dilation, self.groups
        if relu:
            shifts = self.stride, self.padding, self.dilation
            y = cudnn.conv_relu(x, self.weight, self.bias, residual, *shifts)
            if y is not None:
                return y
        # torch 2.11's oneDNN adds nothing to a map of one pixel
        one_pixel = residual is not None and residual.shape[-2:] == (1, 1)
        if one_pixel or not _has_pointwise(x):
            y = F.conv2d(
                x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
            )
            y = y if residual is None else y.add_(residual)
            return y.relu_() if relu else y
        own = None if traced() else self._own_packed(x)
        if own is not None:
            layout = _sides(self.padding), self.dilation, relu
            if overwrites and _is_dense(residual):
                torch.ops.colorseg.packed_conv2d_.default(x, own, self.bias, residual, *layout)
                return residual
            return torch.ops.colorseg.packed_conv2d.default(x, own, self.bias, residual, *layout)
        weight = self._packed
        if weight is None:
            pack = torch.ops.mkldnn._reorder_convolution_weight
            weight = self._packed = pack(self.weight, *options, x.shape)
        after = "relu" if relu else "none"
        if residual is None:
            return torch.ops.mkldnn._convolution_pointwise(
                x, weight, self.bias, *options, after, [], ""
            )
        return torch.ops.mkldnn._convolution_pointwise.binary(
            x, residual, weight, self.bias, *options,
            "add", None, after if relu else None, [], "",
        )  # fmt: skip

    def _own_packed(self, x: Tensor) -> Tensor | None:
        """The weight as the library's own kernel reads it, None where oneDNN is faster."""
        exact = _is_exact()
        packing = self._packings.get((x.shape, exact))
        if packing is None:
            layout = self.stride, _sides(self.padding), self.dilation, self.groups
            packing = torch.ops.colorseg.conv2d_packing.default(x, self.weight, *layout, exact)
            if len(self._packings) == MAX_SHAPES:
                self._packings.clear()
            self._packings[x.shape, exact] = packing
        if packing and packing not in self._own:
            self._own[packing] = torch.ops.colorseg.pack_conv2d.default(self.weight, packing)
        return self._own.get(packing)


def _is_dense(residual: Tensor | None) -> TypeGuard[Tensor]:
    """Whether a result can take its place; a map of one pixel, which is of both layouts, cannot."""
    return (
        residual is not None
        and residual.is_contiguous(memory_format=torch.channels_last)
        and not residual.is_contiguous()
    )


def _is_exact() -> bool:
    """Whether errors of float32 products must stay below twice those of direct ones."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set per backend, which torch refuses to put into one word
        return True


def _sides(padding: Any) -> list[int]:
    """(top, bottom, left, right)."""
    return [padding[0], padding[0], padding[1], padding[1]]


def fold(model: nn.Module, dtype: torch.dtype) -> None:
    """Fold every batch norm of fused blocks and forms that can be, in place.

    Nothing of the model is differentiated from then on.  On CUDA ``dtype`` is a half type.
    """
    model.requires_grad_(False)
    for module in list(model.modules()):
        children = module._modules
        if isinstance(module, Form) and not isinstance(module, ImagePooling):
            for conv, bn in ((f"conv{i}", f"bn{i}") for i in (1, 2, 3)):
                folded = _folded(children.get(conv), children.get(bn), dtype)
                if folded is not None:
                    children[conv], children[bn] = folded, nn.Identity()
        elif isinstance(module, FusedForward):
            _fold_runs(children, dtype)


def _fold_runs(children: dict[str, Any], dtype: torch.dtype) -> None:
    names, modules, start = list(children), list(children.values()), 0
    while start < len(modules):
        run: Any = find_run(modules, start) if is_conv(modules[start]) else None
        whole = isinstance(run, Run) and not run.resample
        folded = _folded(run.conv, run.bn, dtype, run.relu) if whole else None
        if folded is None:
            start += 1
            continue
        children[names[start]] = folded
        for name in names[start + 1 : start + run.length]:
            children[name] = nn.Identity()  # keeps the names of what follows
        start += run.length


def _folded(conv: Any, bn: Any, dtype: torch.dtype, relu: bool = False) -> FoldedConv2d | None:
    """The two as one, None where they cannot be."""
    folds = (
        conv is not None
        and why_not_fusable(conv, bn) is None
        and type(conv) is nn.Conv2d
        and not isinstance(conv.padding, str)
        and bn.running_mean is not None
        and conv.weight.dtype == torch.float32
        and conv.weight.device.type in ("cpu", "cuda")
    )
    if not folds:
        return None
    folded = FoldedConv2d(conv, bn, dtype, relu)
    # shifts that means and scales make together may be beyond its range
    overflows = dtype == torch.float16 and not all(t.isfinite().all() for t in folded.buffers())
    return None if overflows else folded


def _has_pointwise(x: Tensor) -> bool:
    """Whether oneDNN does the rest in the convolution's own pass: what torch.compile calls, too."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_convolution_pointwise")
    )
