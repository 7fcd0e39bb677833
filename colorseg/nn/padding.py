"""The padding that a block chooses where none is given."""

from typing import Any


def conv_padding(
    kernel: int,
    stride: int = 1,
    padding: int | None = None,
    dilation: int = 1,
    transposed: bool = False,
    output_padding: int | None = None,
) -> dict[str, Any]:
    """Arguments padding, and output_padding if transposed, of a convolution module.

    With kernel k, stride s, dilation d: padding ``(k - 1) // 2 * d`` and output_padding
    ``s + 2 * padding - d * (k - 1) - 1``, which divide or multiply the size by s; for stride 1 and
    even k torch's uneven ``"same"``.

    Raises:
        ValueError: a number is out of range, or no output_padding leads to the size.
    """
    _check_int("kernel_size", kernel, 1)
    _check_int("stride", stride, 1)
    _check_int("dilation", dilation, 1)
    _check_int("padding", 0 if padding is None else padding, 0)
    _check_int("output_padding", 0 if output_padding is None else output_padding, 0)
    if not transposed and output_padding is not None:
        raise ValueError(
            "output_padding belongs to transposed convolutions; "
            "pass transposed=True or leave it out"
        )
    if padding is None and stride == 1 and not transposed and kernel % 2 == 0:
        return {"padding": "same"}
    if padding is None:
        padding = (kernel - 1) // 2 * dilation
    if not transposed:
        return {"padding": padding}
    if output_padding is None:
        output_padding = stride + 2 * padding - dilation * (kernel - 1) - 1
    if output_padding < 0:
        raise ValueError(
            f"a transposed convolution with kernel {kernel}, stride {stride}, dilation {dilation} "
            f"and padding {padding} would need output_padding {output_padding}; "
            "use an odd kernel or a larger padding"
        )
    return {"padding": padding, "output_padding": output_padding}


def _check_int(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an int of at least {least}, got {value!r}")
