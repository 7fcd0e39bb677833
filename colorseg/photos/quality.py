"""How good colors are, as people and as numbers see them."""

import math

import torch
from torch import nn

from colorseg.data import ImageSet
from colorseg.metrics import colorfulness
from colorseg.photos.casting import cast_for
from colorseg.photos.chroma import chroma, join, luma
from colorseg.photos.colorizing import TEMPERATURE, decoded, network_of
from colorseg.training.color import palette_of
from colorseg.training.modes import eval_mode

TOP = 5


def color_quality(
    model: nn.Module, pictures: ImageSet, decode: str = "annealed",
    temperature: float = TEMPERATURE, batch_size: int = 100,
) -> dict[str, float]:  # fmt: skip
    """Measure colors that a network gives pictures at their own size, joined with their luma.

    Args:
        model: as for ``colorize``, on the CPU.
        pictures: whose grey values it sees.
        decode: as for ``colorize``.
        temperature: as for ``colorize``.
        batch_size: pictures at a time.

    Returns:
        ``top5``: fraction of pixels whose palette color is among the five likeliest; ``psnr``,
        ``psnr grey`` (the grey pictures') and ``psnr palette`` (that of the right palette colors
        joined with the luma), in dB, of the squared error's mean over all pictures, since the mean
        of their own ratios would be that of the greyest: infinite where all are equal; and means
        over pictures of ``colorfulness`` and ``colorfulness truth``, see ``colorseg.metrics``.
    """
    palette = palette_of(network_of(model))
    found: dict[str, list[float]] = {}
    hits = pixels = 0
    for index in torch.arange(len(pictures)).split(batch_size):
        images = pictures.images[index]
        truth = palette.quantize(images, torch.int64)
        with torch.inference_mode(), eval_mode(model):
            logits = model(cast_for(model, pictures.grey(index))).float()
        best = logits.topk(min(TOP, len(palette)), dim=1).indices
        hits += int((best == truth[:, None]).sum())
        pixels += truth.numel()
        for image, scores, labels in zip(images / 255, logits, truth, strict=True):
            y = luma(image)
            colored = join(y, chroma(decoded(scores, palette, decode, temperature)))
            right = join(y, chroma(palette.colors[labels].permute(2, 0, 1)))
            figures = {
                "psnr": (colored - image).square().mean(),
                "psnr grey": (y - image).square().mean(),
                "psnr palette": (right - image).square().mean(),
                "colorfulness": colorfulness(colored[None]),
                "colorfulness truth": colorfulness(image[None]),
            }
            for name, value in figures.items():
                found.setdefault(name, []).append(value.item())
    means = {name: sum(values) / len(values) for name, values in found.items()}
    for name in ("psnr", "psnr grey", "psnr palette"):
        means[name] = -10 * math.log10(means[name]) if means[name] else math.inf
    return {"top5": hits / pixels} | means
