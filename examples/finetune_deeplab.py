"""Train DeepLabV3 to segment, once per loss, and compare; ``--help`` lists the settings.

Without arguments: generated scenes of flowers, a small backbone, cross-entropy and then soft IoU.
"""

import argparse
import sys
from dataclasses import replace

import colorseg
from colorseg.data import load_segmentation
from colorseg.models import deeplabv3
from colorseg.training import SegmentationConfig, evaluate, fit, ranks
from colorseg.training.command import guarded, numbered_out
from colorseg.training.comparison import save_comparison
from colorseg.training.seeding import seed_everything


def parse() -> argparse.Namespace:
    """The settings."""
    parser = argparse.ArgumentParser(description="Train DeepLabV3 to segment, once per loss.")
    add = parser.add_argument
    add("--data", default="scenes", help="scenes, flowers17, or a folder of images and masks")
    add("--download", action="store_true", help="let flowers17 be downloaded (60 MB)")
    add("--mode", default="clean", choices=["clean", "course"], help="how masks are read")
    add("--image-size", type=int, default=96, help="height and width; the course has 224")
    add("--backbone", default="resnet18", help="resnet18, resnet34, resnet50 or resnet101")
    add("--output-stride", type=int, help="8 is finer and slower (default: the weights', else 16)")
    add("--weights", help="coco, or a file; random if not given")
    add("--head-only", action="store_true", help="freeze all but the last layer")
    add("--drift", action="store_true", help="as in the course, frozen batch norm goes on counting")
    add("--no-augment", action="store_true", help="pictures as they are")
    add("--loss", default="both", choices=["ce", "iou", "sum", "both"], help="both: one by one")
    add("--epochs", type=int, default=6)
    add("--batch-size", type=int, default=8)
    add("--lr", type=float, default=1e-3)
    add("--schedule", default="poly", choices=["poly", "constant"])
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    add("--amp", action="store_true", help="forward in bfloat16, on CUDA")
    add("--sync-bn", action="store_true", help="normalize over the batches of all processes")
    add("--reference", action="store_true", help="plain torch instead of the fused operators")
    add("--out", help="where to write (default: runs/deeplab; -2, -3, ... is added if taken)")
    add("--resume", action="store_true", help="go on with the runs in --out; give their settings")
    return parser.parse_args()


def settings(options: argparse.Namespace) -> SegmentationConfig:
    """What all runs have in common; ``out`` is the folder around theirs."""
    if options.drift and not options.head_only:
        raise ValueError("--drift is about frozen batch norm, so it needs --head-only")
    shared = (
        *("data", "download", "mode", "epochs", "batch_size", "lr", "schedule", "seed", "device"),
        *("amp", "sync_bn", "reference", "resume"),
    )
    return SegmentationConfig(
        **{name: getattr(options, name) for name in shared},
        augment=not (options.no_augment or options.head_only),
        out=options.out or numbered_out("runs/deeplab", options.resume),
    )


def train(options: argparse.Namespace, shared: SegmentationConfig) -> None:
    """Train with each loss, from the same weights and on the same batches."""
    train, val = load_segmentation(
        shared.data, image_size=options.image_size, mode=shared.mode, download=shared.download
    )
    stride = options.output_stride or (None if options.weights else 16)
    histories, measured = {}, {}
    for loss in ("ce", "iou") if options.loss == "both" else (options.loss,):
        seed_everything(shared.seed)
        model = deeplabv3(
            options.backbone, len(train.classes), output_stride=stride, weights=options.weights
        )
        network = f"deeplabv3 {options.backbone}, stride {model.output_stride}"
        config = replace(shared, network=network, loss=loss, out=f"{shared.out}/{loss}")
        if options.head_only:
            statistics = "drift" if options.drift else "frozen"
            colorseg.freeze(model, except_=("classifier.4",), batch_norm=statistics)
        histories[loss] = fit(model, train, val, config)
        where = {"device": config.device, "reference": config.reference}
        measured[loss] = evaluate(model, val, batch_size=config.batch_size, **where)
    if ranks.is_first():
        print(save_comparison(histories, measured, val, shared.out))


def main() -> None:
    """Train alone, or with the other processes that torchrun started."""
    options = parse()
    with ranks.joined(lambda: settings(options)) as shared:
        train(options, shared)


if __name__ == "__main__":
    sys.exit(guarded(main, "use a smaller --batch-size or --image-size"))
