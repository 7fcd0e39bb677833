"""``chain``: blocks one behind the other as one private operator, for :mod:`colorseg.nn.chain`."""

import contextlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor

from colorseg.ops._geometry import ConvOptions
from colorseg.ops._precision import follow_tf32
from colorseg.ops._registration import needs_grad, refuse_second_derivative, without_autocast
from colorseg.ops.conv_bn_relu import Running, update_running_statistics

RESAMPLE_CODES = {None: 0, "maxpool2": 1, "upsample2": 2}
SAVED = 5  # tensors of each batch norm: its input, argmax, mean, variance and affine

Kept = dict[Any, list[Tensor]]
_kept: ContextVar[Kept | None] = ContextVar("kept", default=None)


class Layer(NamedTuple):
    """One block, or the plain convolution at the end (then the batch norm's entries do not count).

    ``main`` and ``skip`` say what is convolved: 0 the chain's input, i + 1 the result of layer i,
    -1 nothing.
    """

    main: int
    skip: int
    conv: ConvOptions
    resample: str | None
    batch_norm: bool
    relu: bool
    batch_statistics: bool
    eps: float
    momentum: float  # negative: of the cumulative average
    parameters: tuple[Tensor | None, ...]  # weight, bias, and of batch norm weight, bias
    running: tuple[Tensor | None, Tensor | None, Tensor | None]  # mean, var, number of batches

    def numbers(self) -> list[int]:
        """How ``colorseg::chain`` takes it."""
        stride, padding, dilation, _groups, transposed, output_padding = self.conv
        return [
            self.main, self.skip, int(transposed), stride[0], *padding, *dilation, *output_padding,
            RESAMPLE_CODES[self.resample], int(self.batch_norm), int(self.relu),
            int(self.batch_statistics),
        ]  # fmt: skip


class _Chain(torch.autograd.Function):
    """Differentiates the parameters and x; the running statistics travel beside them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, arguments: Any, *parameters: Tensor | None) -> Any:
        layers, numbers, eps, running = arguments
        packed = _pack(parameters, running, x)
        with torch._C._AutoDispatchBelowAutograd():
            y, *saved = torch.ops.colorseg.chain.default(x, packed, numbers, eps)
        _update_running(layers, saved)  # now: saving ends a checkpoint's second run
        ctx.arguments, ctx.count = arguments[1:], len(parameters)
        ctx.save_for_backward(x, *saved, *parameters)
        ctx.mark_non_differentiable(*saved)
        ctx.set_materialize_grads(False)
        return y, *saved

    @staticmethod
    @without_autocast
    def backward(ctx: Any, grad_y: Tensor | None, *_: None) -> tuple[Any, ...]:
        if grad_y is None:
            return (None,) * (2 + ctx.count)
        refuse_second_derivative("a fused network", "colorseg.unfuse(model)")
        numbers, eps, running = ctx.arguments
        x, *rest = ctx.saved_tensors
        saved, parameters = rest[: -ctx.count], rest[-ctx.count :]
        grad_x, *grads = torch.ops.colorseg.chain_backward.default(
            grad_y, x, _pack(parameters, running, x), saved, numbers, eps, ctx.needs_input_grad[0]
        )
        wanted = [g if p is not None else None for g, p in zip(grads, parameters, strict=True)]
        return grad_x if ctx.needs_input_grad[0] else None, None, *wanted


def _pack(
    parameters: Sequence[Tensor | None], running: Sequence[Tensor | None], x: Tensor
) -> list[Tensor]:
    """Tensors of all layers in the operator's order; an empty one stands for None."""
    none = x.new_empty(0)
    packed = []
    for i in range(len(running) // 2):
        packed += [*parameters[4 * i : 4 * i + 4], *running[2 * i : 2 * i + 2]]
    return [none if t is None else t for t in packed]


def pack(layers: Sequence[Layer]) -> tuple[list[int], list[float]]:
    """The numbers of all layers and the eps of their batch norms, as the operators take them."""
    return [n for layer in layers for n in layer.numbers()], [layer.eps for layer in layers]


def run(x: Tensor, layers: Sequence[Layer]) -> Tensor:
    """The chain of ``x``, (N, C, H, W); updates running statistics.

    On the CPU all is float32 and contiguous.  On CUDA maps are in the dtype of ``x``, float32 or a
    half type, and the result is channels_last; weights have that dtype or float32.
    """
    follow_tf32(x)
    parameters = [t for layer in layers for t in layer.parameters]
    running = [t for layer in layers for t in layer.running[:2]]
    numbers, eps = pack(layers)
    if needs_grad(x, *parameters):
        return _Chain.apply(x, (layers, numbers, eps, running), *parameters)[0]
    with torch._C._AutoDispatchBelowAutograd():
        packed = _pack(parameters, running, x)
        kept = None if any(layer.batch_statistics for layer in layers) else _kept.get()
        if kept is not None:
            key = (x.dtype, *map(id, parameters))
            if key not in kept:
                kept[key] = torch.ops.colorseg.prepare_chain.default(x, packed, numbers, eps)
            own = kept[key]
            return torch.ops.colorseg.prepared_chain.default(x, packed, own, numbers, eps)
        y, *saved = torch.ops.colorseg.chain.default(x, packed, numbers, eps)
    _update_running(layers, saved)
    return y


@contextlib.contextmanager
def preparing(kept: Kept) -> Iterator[None]:
    """Inside the block, on CUDA: what chains in eval mode make of their parameters alone is made in
    their first run and kept in ``kept`` for the others, without gradients.
    """
    before = _kept.set(kept)
    try:
        yield
    finally:
        _kept.reset(before)


def fits(x: Tensor, layers: Sequence[Layer]) -> bool:
    """Whether the CUDA kernels take all of the layers."""
    follow_tf32(x)
    parameters = [t for layer in layers for t in layer.parameters]
    running = [t for layer in layers for t in layer.running[:2]]
    with torch._C._AutoDispatchBelowAutograd():
        packed = _pack(parameters, running, x)
        return torch.ops.colorseg.chain_fits.default(x, packed, *pack(layers))


def _update_running(layers: Sequence[Layer], saved: Sequence[Tensor]) -> None:
    statistics: list[Running] = []
    batch: list[Tensor] = []
    counts, momenta = [], []
    for i, layer in enumerate(layers):
        mean, var, tracked = layer.running
        if not layer.batch_statistics or mean is None or var is None:
            if tracked is not None:
                tracked.add_(1)
            continue
        shape = saved[SAVED * i].shape  # of the map, before it is upsampled
        values = shape[0] * shape[2] * shape[3]
        counts.append(4 * values if layer.resample == "upsample2" else values)
        statistics.append((mean, var, tracked))
        batch += saved[SAVED * i + 2 : SAVED * i + 4]
        momenta.append(layer.momentum)
    if statistics:
        update_running_statistics(statistics, batch, counts, momenta)
