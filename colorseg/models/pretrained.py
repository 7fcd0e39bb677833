"""Weights of DeepLabV3: torchvision's published files, and files of one's own."""

import hashlib
import logging
import os
from pathlib import Path

from torch import nn

from colorseg.data.download import default_cache
from colorseg.models.resnet import RESNETS, Bottleneck
from colorseg.models.weights import StoredWeights, load_weights

logger = logging.getLogger("colorseg")
# a file's name ends with the first digits of its sha256
COCO = {
    "resnet50": "https://download.pytorch.org/models/deeplabv3_resnet50_coco-cd0a2569.pth",
    "resnet101": "https://download.pytorch.org/models/deeplabv3_resnet101_coco-586e9e4e.pth",
}
HEADS = ("classifier", "aux_classifier")
LAST = tuple(f"{head}.4.{name}" for head in HEADS for name in ("weight", "bias"))


def read_pretrained(weights: str | Path, backbone: str) -> StoredWeights:
    """What "coco" or a file holds for a DeepLabV3 with that backbone.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged, or of another network.
        OSError, ImportError: the download failed.
    """
    path = coco_file(backbone) if weights == "coco" else Path(weights)
    stored = load_weights(path, "DeepLabV3")
    check_architecture(stored, backbone)
    return stored


def load_pretrained(model: nn.Module, stored: StoredWeights) -> None:
    """Copy it into a new DeepLabV3, but for last layers of other classes.

    Raises:
        ValueError: keys or shapes do not fit.
    """
    path = stored.path
    fitting = dict(stored.tensors)
    own = model.state_dict()
    if "aux_classifier.4.weight" not in own:
        fitting = {k: v for k, v in fitting.items() if not k.startswith("aux_classifier.")}
    replaced = [k for k in LAST if k in own and k in fitting and own[k].shape != fitting[k].shape]
    for key in replaced:
        fitting[key] = own[key]
    StoredWeights(path, fitting).load_into(model)
    if replaced:
        old, new = (len(tensors["classifier.4.bias"]) for tensors in (stored.tensors, own))
        layers = " and ".join(sorted({key.rpartition(".")[0] for key in replaced}, reverse=True))
        logger.warning(
            "%s is of %d classes, not %d: %s starts from random weights", path, old, new, layers
        )


def check_architecture(stored: StoredWeights, backbone: str) -> None:
    """ValueError, with what to do, unless the tensors are of a DeepLabV3 with that backbone."""
    found = backbone_of(stored)
    if found != backbone:
        raise ValueError(
            f"{stored.path} holds the weights of a DeepLabV3 with {found}, not with {backbone}; "
            f"pass backbone={found!r} if it is one of {', '.join(RESNETS)}"
        )


def backbone_of(stored: StoredWeights) -> str:
    """Name of the ResNet whose blocks the layers have; ValueError if it is another network."""
    keys = stored.tensors.keys()
    if not {"backbone.layer1.0.conv1.weight", "classifier.4.weight", "classifier.4.bias"} <= keys:
        raise ValueError(
            f"{stored.path} does not hold the weights of a DeepLabV3 with a ResNet: it has no "
            "backbone.layer1.0.conv1.weight or no classifier.4.weight"
        )
    deep = "backbone.layer1.0.conv3.weight" in keys
    counts = tuple(
        len({k.split(".")[2] for k in keys if k.startswith(f"backbone.layer{i}.")})
        for i in (1, 2, 3, 4)
    )
    for name, architecture in RESNETS.items():
        if counts == architecture.counts and deep == (architecture.block is Bottleneck):
            return name
    return f"layers of {counts} blocks"


def coco_file(backbone: str) -> Path:
    """Path of torchvision's file in the cache, downloaded if it is not there."""
    if backbone not in COCO:
        raise ValueError(
            f"there are no published weights for {backbone}, only for {', '.join(COCO)}"
        )
    url = COCO[backbone]
    name = url.rpartition("/")[2]
    prefix = Path(name).stem.rpartition("-")[2]
    path = default_cache() / name
    if not path.is_file():
        _download(url, path, prefix)
    elif not _is_it(path, prefix):
        raise ValueError(
            f"{path} is damaged, since its sha256 does not start with {prefix}: delete it, so that "
            "it is downloaded again"
        )
    return path


def _is_it(path: Path, prefix: str) -> bool:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().startswith(prefix)


def _download(url: str, path: Path, prefix: str) -> None:
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"downloading weights needs pooch: pip install pooch, or save {url} as {path}"
        ) from error
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        pooch.retrieve(url, None, fname=draft.name, path=path.parent, progressbar=True)
        if not _is_it(draft, prefix):
            raise ValueError(
                f"what {url} sent was not kept, since its sha256 does not start with {prefix}: "
                "try again later, or pass the path of a copy as weights"
            )
        os.replace(draft, path)
    except OSError as error:
        raise OSError(
            f"cannot download {url} to {path.parent}: {error}; or pass the path of a copy as "
            "weights"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
