"""Sizes of a network, layer by layer, under stated counting conventions."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from colorseg.nn import unfuse

_ROW = "{:<16}{:<18}{:>16}{:>10}{:>8}{:>6}{:>10}{:>13}"


@dataclass(frozen=True)
class Layer:
    """One leaf module: its output shape (C, H, W) without the batch, and its sizes."""

    name: str
    kind: str
    shape: tuple[int, ...]
    weights: int
    biases: int
    bn_parameters: int
    others: int  # parameters of other kinds of modules
    connections: int  # nominal multiply-adds: taps that fall on zero padding count
    exact_connections: int  # without those taps

    @property
    def outputs(self) -> int:
        """Values in the output of one image."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Summary:
    """All layers of a network for one image of the given size.

    Totals follow the course's conventions: ``weights`` are convolution weights without biases and
    batch norm, ``outputs`` those of convolutions alone, ``connections`` count taps on zero padding.
    """

    layers: tuple[Layer, ...]
    input_size: tuple[int, ...]

    def total(self, name: str) -> int:
        """Sum of a column of :class:`Layer`."""
        return sum(getattr(layer, name) for layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights and biases of convolutions, and what batch norms and others have."""
        columns = ("weights", "biases", "bn_parameters", "others")
        return sum(self.total(name) for name in columns)

    def outputs(self, *, count_pool: bool = False, count_bn: bool = False) -> int:
        """Values in the outputs of convolutions, and optionally of pool/upsample and batch norm."""
        kinds = {"conv"} | ({"resample"} if count_pool else set()) | ({"bn"} if count_bn else set())
        return sum(layer.outputs for layer in self.layers if _group(layer.kind) in kinds)

    def __str__(self) -> str:
        titles = ("layer", "type", "output", "weights", "biases", "BN", "outputs", "connections")
        rows = [_ROW.format(*titles)]
        for x in self.layers:
            sizes = (x.weights, x.biases, x.bn_parameters, x.outputs, x.connections)
            shape = " x ".join(map(str, x.shape))
            rows.append(_ROW.format(x.name, x.kind, shape, *(f"{n:,}" for n in sizes)))
        weights, biases, bn = (self.total(n) for n in ("weights", "biases", "bn_parameters"))
        others = f" + other layers {n:,}" if (n := self.total("others")) else ""
        outputs = (
            self.outputs(),
            self.outputs(count_pool=True),
            self.outputs(count_pool=True, count_bn=True),
        )
        return "\n".join(
            [
                *rows,
                f"input {' x '.join(map(str, self.input_size))}; parameters {self.parameters:,} "
                f"= weights {weights:,} + biases {biases:,} + BN {bn:,}{others}",
                "outputs: convolutions {:,}; with pool/upsample {:,}; with BN too {:,}".format(
                    *outputs
                ),
                f"connections (multiply-adds): {self.total('connections'):,} nominal, "
                f"{self.total('exact_connections'):,} without taps on zero padding",
            ]
        )


def _group(kind: str) -> str:
    if kind in ("Conv2d", "ConvTranspose2d"):
        return "conv"
    if kind in ("MaxPool2d", "Upsample"):
        return "resample"
    return "bn" if kind == "BatchNorm2d" else "other"


def summary(model: nn.Module, input_size: tuple[int, ...]) -> Summary:
    """Sizes of every leaf layer of ``model`` for one image.

    Args:
        model: any module; fused blocks are counted as the plain layers they stand for.  It is not
            changed.
        input_size: (C, H, W) of the image.

    Returns:
        A :class:`Summary`; print it for the table.
    """
    plain = unfuse(copy.deepcopy(model)).eval()
    layers: list[Layer] = []

    def record(name: str):  # type: ignore[no-untyped-def]
        return lambda module, args, output: layers.append(_layer(name, module, args[0], output))

    for name, module in plain.named_modules():
        if not list(module.children()) or list(module.parameters(recurse=False)):
            module.register_forward_hook(record(name))
    parameter = next(plain.parameters(), torch.empty(0))
    with torch.no_grad():
        plain(torch.zeros(1, *input_size, dtype=parameter.dtype, device=parameter.device))
    return Summary(tuple(layers), tuple(input_size))


def _layer(name: str, module: nn.Module, x: Tensor, y: Tensor) -> Layer:
    conv = isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    bn = isinstance(module, nn.BatchNorm2d)
    own = {key: value.numel() for key, value in module.named_parameters(recurse=False)}
    nominal, exact = _connections(module, x, y) if conv else (0, 0)  # type: ignore[arg-type]
    return Layer(
        name,
        "Conv2d" if isinstance(module, nn.Conv2d) else type(module).__name__,
        tuple(y.shape[1:]),
        weights=own.get("weight", 0) if conv else 0,
        biases=own.get("bias", 0) if conv else 0,
        bn_parameters=sum(own.values()) if bn else 0,
        others=0 if conv or bn else sum(own.values()),
        connections=nominal,
        exact_connections=exact,
    )


def _connections(module: nn.Conv2d | nn.ConvTranspose2d, x: Tensor, y: Tensor) -> tuple[int, int]:
    """Multiply-adds of one image: (nominal, without taps outside the map)."""
    transposed = isinstance(module, nn.ConvTranspose2d)
    # taps go from each pixel of `small` into `large`
    small, large = (x, y) if transposed else (y, x)
    channels = module.weight.shape[0] * module.weight.shape[1]
    nominal, exact = channels, channels
    for axis in (0, 1):
        k, s, d = module.kernel_size[axis], module.stride[axis], module.dilation[axis]
        padding = {"same": d * (k - 1) // 2, "valid": 0}
        left = int(
            padding[module.padding] if isinstance(module.padding, str) else module.padding[axis]
        )
        size, limit = small.shape[2 + axis], large.shape[2 + axis]
        inside = sum(0 <= i * s - left + t * d < limit for i in range(size) for t in range(k))
        nominal, exact = nominal * size * k, exact * inside
    return nominal, exact
