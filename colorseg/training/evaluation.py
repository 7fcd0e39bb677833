"""Loss and accuracy of a network on a set of pictures."""

from torch import nn

from colorseg.data import ImageSet, SegmentationSet
from colorseg.palette import Palette
from colorseg.training.color import ColorTask, palette_of
from colorseg.training.config import Config
from colorseg.training.segmentation import SegmentationTask
from colorseg.training.task import Task, usable_device


def evaluate(
    model: nn.Module,
    data: ImageSet | SegmentationSet,
    palette: Palette | None = None,
    batch_size: int = 500,
    device: str = "cpu",
    reference: bool = False,
    task: str = "colorize",
) -> dict[str, float]:
    """Measure a network on all pictures of a set, in eval mode and without gradients.

    Args:
        model: for an ``ImageSet``, takes grey pictures ``(N, 1, H, W)`` float32 in [0, 1), gives
            one logit per palette color, ``(N, K, H, W)``; for a ``SegmentationSet``, takes
            normalized ones ``(N, 3, H, W)``, gives one logit per class, as they are or as
            ``{"out": logits}``.  It is moved to ``device`` and keeps its mode.
        data: the pictures.
        palette: the K colors; None takes ``model.palette``, or horse24 where that is missing.
        batch_size: pictures at a time; the result depends on it only by rounding.
        device: where to compute.
        reference: take the plain loss, as ``Config.reference`` does.
        task: what a network on an ``ImageSet`` sees, see ``Config``.

    Returns:
        ``loss``: cross-entropy, mean over all pixels (of a ``SegmentationSet`` over its batches);
        ``accuracy``: fraction of pixels with the right class; ``pixels``: how many there are.  Of
        a ``SegmentationSet`` also ``miou`` (macro), ``course`` and ``iou <class>``, see
        ``colorseg.metrics.MeanIoU``.

    Raises:
        TypeError: ``data`` is neither kind of set.
        ValueError: the set is empty, the device cannot be used, or the network gives another
            number of logits than there are colors or classes.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    place = usable_device(device)
    measured: Task
    if isinstance(data, SegmentationSet):
        measured = SegmentationTask(data, place, plain=reference)
    else:
        palette = palette_of(model) if palette is None else palette
        measured = ColorTask(data, palette, place, reference, Config(task=task))
    return measured.measure(model.to(place), batch_size)
