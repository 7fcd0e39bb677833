"""The sections of a report, in the order of the questions that it answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from colorseg.data import ImageSet
from colorseg.models import NETWORKS, summary
from colorseg.nn import ConvBNReLU
from colorseg.nn.padding import conv_padding
from colorseg.report.document import Picture, Section, Table
from colorseg.report.figures import save_batch_sizes, save_networks
from colorseg.report.published import BATCH_SIZES, EPOCHS, PUBLIC_RUNS, REPORT, TITLES, Band
from colorseg.report.runs import KERNELS, SWEPT, Run
from colorseg.training import evaluate
from colorseg.training.history import Epoch, History

KERNELS_SHOWN = (3, 4, 5, 6, 7)
QUESTIONS = {  # of each network in the report
    "pool_upsample": "1.1 Pooling and upsampling",
    "conv_transpose": "1.2 Strided and transposed convolutions",
    "unet": "1.3 Skip connections",
}


def build_sections(
    runs: Sequence[Run], bands: Mapping[str, Band], folder: Path, lossless: ImageSet | None = None
) -> list[Section]:
    """All sections; figures over several runs are saved in ``folder``.

    lossless: validation pictures of which the original pixels are at hand.
    """
    by_name = {run.name: run for run in runs}
    histories = {name: run.history() for name, run in by_name.items()}
    sections = [_networks(by_name, histories, bands, folder, lossless)]
    for network, title in QUESTIONS.items():
        sections.append(_network(title, network, by_name[network]))
    sections.append(_sizes(by_name["unet"].config.num_filters))
    sections.append(_padding())
    if "unet-dilated" in by_name:
        sections.append(_dilated(by_name["unet-dilated"], histories))
    sections.append(_kernels(histories))
    sections.append(_batch_sizes(histories, folder))
    return sections


def _networks(
    runs: Mapping[str, Run], histories: Mapping[str, History], bands: Mapping[str, Band],
    folder: Path, lossless: ImageSet | None,
) -> Section:  # fmt: skip
    epochs = len(histories["unet"])
    heading = [
        "network", "report: loss", "public runs: loss, accuracy", "colorseg: loss, accuracy",
        "plain torch: loss, accuracy", "difference of losses", "band", "within",
        *([] if lossless is None else [f"{len(lossless)} lossless pictures: loss, accuracy"]),
    ]  # fmt: skip
    rows = []
    for network in NETWORKS:
        last = histories[network].epochs[-1]
        plain = histories.get(f"{network}-plain")
        band = bands.get(network)
        rows.append([
            TITLES[network],
            f"{REPORT[network]:.2f}",
            f"{PUBLIC_RUNS[network][0]:.3f}, {100 * PUBLIC_RUNS[network][1]:.1f} %",
            _result(last),
            _result(plain.epochs[-1]) if plain else "not trained",
            f"{last.val_loss - plain.epochs[-1].val_loss:+.4f}" if plain else "",
            str(band) if band else "none for these data and settings",
            "" if band is None else "yes" if last.val_loss in band else "no",
            *([] if lossless is None else [_measured(runs[network], lossless)]),
        ])  # fmt: skip
    networks = {TITLES[name]: histories[name] for name in NETWORKS}
    picture = save_networks(networks, folder / "figures" / "networks.png")
    ranking = sorted(NETWORKS, key=lambda name: histories[name].epochs[-1].val_loss)
    order = " before ".join(TITLES[name] for name in ranking)
    return Section(
        f"The three networks after {epochs} epoch{'s' * (epochs > 1)}",
        [
            f"By validation loss: {order}. Published losses are of {EPOCHS} epochs on the original "
            "CIFAR-10 horses; a band is where runs on the same pictures end.",
            Table("networks", heading, rows),
            Picture(picture, "Losses and accuracies of the three networks."),
        ],
    )


def _measured(run: Run, pictures: ImageSet) -> str:
    model = NETWORKS[run.config.network](weights=run.folder / "model.safetensors")
    found = evaluate(model, pictures)
    return f"{found['loss']:.4f}, {100 * found['accuracy']:.1f} %"


def _dilated(run: Run, histories: Mapping[str, History]) -> Section:
    rows = [
        [str(dilation), _result(histories[name].epochs[-1])]
        for name, dilation in (("unet", 1), (run.name, run.config.dilation))
    ]
    return Section(
        "UNet with a dilated middle",
        [
            "The second convolution reads every other pixel of its map, as in the assignment's "
            "DilatedUNet.",
            Table("dilated", ["dilation", "validation loss, accuracy"], rows),
            Picture(run.folder / "samples.png", "Dilated UNet: input, truth and prediction."),
        ],
    )


def _result(epoch: Epoch) -> str:
    return f"{epoch.val_loss:.4f}, {100 * epoch.val_accuracy:.1f} %"


def _network(title: str, network: str, run: Run) -> Section:
    config = run.config
    model = NETWORKS[network](config.kernel, config.num_filters)
    rows = [
        [name, " x ".join(map(str, p.shape)), f"{p.numel():,}"]
        for name, p in model.named_parameters()
    ]
    total = sum(p.numel() for p in model.parameters())
    rows.append(["all", "", f"{total:,}"])
    name = TITLES[network]
    return Section(
        title,
        [
            Picture(run.folder / "curves.png", f"{name}: training and validation."),
            Picture(run.folder / "samples.png", f"{name}: input, truth and prediction."),
            f"The parameters of {name}:",
            Table(f"parameters-{network}", ["parameter", "shape", "values"], rows),
        ],
    )


def _sizes(num_filters: int) -> Section:
    heading = [
        "network", "image", "weights", "with biases and batch norm", "outputs of convolutions",
        "connections", "without those to padding",
    ]  # fmt: skip
    rows = []
    for network, make in NETWORKS.items():
        for side in (32, 64):
            sizes = summary(make(num_filters=num_filters), (1, side, side))
            figures = (
                sizes.total("weights"), sizes.parameters, sizes.outputs(),
                sizes.total("connections"), sizes.total("exact_connections"),
            )  # fmt: skip
            rows.append([TITLES[network], f"{side} x {side}", *(f"{n:,}" for n in figures)])
    return Section(
        "Sizes",
        [
            "Twice the height and width leave the weights as they are and make four times the "
            "outputs and connections. Connections count taps that fall on padding; the last "
            "column does not.",
            Table("sizes", heading, rows),
        ],
    )


def _padding() -> Section:
    heading = ["kernel", "padding", "output padding", "stride 2", "transposed", "stride 1"]
    rows = []
    for kernel in KERNELS_SHOWN:
        chosen = conv_padding(kernel, 2, None, 1, True, None)
        blocks = [
            ConvBNReLU(1, 1, kernel, stride=2),
            ConvBNReLU(1, 1, kernel, stride=2, transposed=True, **chosen),
            ConvBNReLU(1, 1, kernel),
        ]
        x = torch.zeros(1, 1, 32, 32)
        with torch.no_grad():
            sides = [block.eval()(x).shape[-1] for block in blocks]
        shown = [f"32 to {side}" for side in sides]
        rows.append([str(kernel), *(str(value) for value in chosen.values()), *shown])
    return Section(
        "Padding for other kernels",
        [
            "A transposed convolution gives (in - 1) stride - 2 padding + kernel + output padding. "
            "padding (k - 1) // 2 and output padding k mod 2 double and halve the size exactly. At "
            "stride 1 no even padding keeps the size for an even kernel: it takes a pixel more at "
            "the right and at the bottom.",
            Table("padding", heading, rows),
        ],
    )


def _kernels(histories: Mapping[str, History]) -> Section:
    found = {3: histories[SWEPT]}
    found |= {k: histories[f"kernel-{k}"] for k in KERNELS if f"kernel-{k}" in histories}
    rows = [
        [str(kernel), _result(history.epochs[-1]), f"{sum(history.column('seconds')):.0f}"]
        for kernel, history in found.items()
    ]
    heading = ["kernel", "validation loss, accuracy", "seconds"]
    return Section(f"Kernels of {TITLES[SWEPT]}", [Table("kernels", heading, rows)])


def _batch_sizes(histories: Mapping[str, History], folder: Path) -> Section:
    found = {
        int(name.split("-")[1]): history
        for name, history in histories.items()
        if name.startswith("batch-")
    }
    losses = {size: history.epochs[-1].val_loss for size, history in found.items()}
    seconds = {size: sum(history.column("seconds")) for size, history in found.items()}
    rows = [
        [
            str(size),
            f"{BATCH_SIZES[size]:.2f}" if size in BATCH_SIZES else "",
            _result(history.epochs[-1]),
            f"{seconds[size]:.0f}",
        ]
        for size, history in found.items()
    ]
    rising = all(a < b for a, b in zip(losses.values(), list(losses.values())[1:], strict=False))
    verdict = "rises with the batch size" if rising else "does not rise with every batch size"
    heading = ["batch size", "report: loss", "colorseg: loss, accuracy", "seconds"]
    items: list[str | Table | Picture] = [Table("batch-sizes", heading, rows)]
    if len(found) > 1:
        picture = save_batch_sizes(
            losses, seconds, BATCH_SIZES, folder / "figures" / "batch-sizes.png"
        )
        items.insert(0, f"After the same number of epochs the validation loss {verdict}.")
        items.append(Picture(picture, "Batch sizes: loss and time."))
    return Section(f"Batch sizes of {TITLES[SWEPT]}", items)
