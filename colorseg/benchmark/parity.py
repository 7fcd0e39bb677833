"""The parity check: a contestant that computes something else is never timed."""

from collections.abc import Sequence

from torch import Tensor

# Errors allowed, see check_parity.  float32 makes 1e-6, a network of PyTorch's 1.4e-5; but where
# rounding decides a ReLU or a nearest color, one value in a million can make 1e-3.  A network in
# bfloat16 makes up to 2e-2, the contestants with the fewest roundings half of that; its gradients,
# and those in tf32, meet flipped ReLUs in every layer.  So do DeepLabV3's gradients in float32,
# behind batch norms of four values: 3e-2 to 6e-2 in PyTorch.
EXACT, TIES, DEEP, HALF, ROUGH = 5e-5, 1e-2, 0.1, 5e-2, 0.25


class ParityError(AssertionError):
    """A contestant does not compute what the float64 reference says, so its time means nothing."""


def check_parity(want: Sequence[Tensor], who: str, got: Sequence[Tensor], allowed: float) -> None:
    """Raise ParityError unless ``got`` is ``want``: a result, and its gradients up to ``allowed``.

    The error is the norm of the difference divided by the norm, so that a few flipped ties pass but
    not one wrong line; the norm of what is 0 but for rounding (the gradient of a bias in front of
    batch norm) is replaced by 1 % of the largest.
    """
    norms = [w.double().norm().item() for w in want]
    for i, (g, w, norm) in enumerate(zip(got, want, norms, strict=True)):
        limit = EXACT if i == 0 < len(want) - 1 else allowed  # a result in front of gradients
        if allowed in (HALF, ROUGH):  # in a shorter type
            limit = allowed
        size = "x".join(map(str, w.shape)) or "scalar"
        if g.shape != w.shape:
            raise ParityError(f"{who}: result {i} has shape {tuple(g.shape)}, expected {size}")
        error = (g.double() - w.double()).norm().item() / max(norm, 1e-2 * max(norms))
        if not error <= limit:  # NaN is an error too
            raise ParityError(f"{who}: result {i} ({size}) is {error:.1e} off, limit {limit:.0e}")
