"""``export``: a trained network as a file that needs no colorseg, ONNX or torch's own."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorseg._files import write_atomically
from colorseg.models.color import ColorNetwork
from colorseg.nn import unfuse
from colorseg.nn.optimized import require_original

SUFFIXES = (".onnx", ".pt2")
MULTIPLE = 4  # of height and width, for the color networks, which halve them twice
CHECKED = ((2, 32, 48), (1, 64, 40))  # batch, height and width that results are compared at
ALLOWED = 1e-4  # largest difference of logits, relative to the largest logit


def export(model: nn.Module, path: str | Path, *, check: bool = True) -> None:
    """Write a network for inference, of any batch and size, in plain PyTorch's operators.

    The file takes ``image`` and gives ``logits``: of the color networks (N, channels, H, W) with H
    and W multiples of 4, grey values / 256; of DeepLabV3 normalized pictures (N, 3, H, W).  ONNX
    files keep palette, grey and class names as metadata.

    Args:
        model: a network of ``colorseg.models``; it is not changed.
        path: ending in ``.onnx``, or in ``.pt2`` for ``torch.export.load``.
        check: compare the file's results with the network's at two sizes, with ONNX Runtime or
            torch, before it is written.

    Raises:
        ValueError: another suffix; the model is one optimised for inference; torch cannot follow
            it; the results differ.
        ImportError: for ONNX, the packages of ``colorseg[export]`` are missing.
        OSError: the file cannot be written.
    """
    target = Path(path)
    if target.suffix not in SUFFIXES:
        raise ValueError(f"{target} must end in {' or '.join(SUFFIXES)}")
    require_original(model, "export")
    plain = Logits(unfuse(copy.deepcopy(model)).eval().cpu().float())
    channels = getattr(model, "num_in_channels", 3)
    example, dynamic = _dynamic(channels, MULTIPLE if isinstance(model, ColorNetwork) else 1)
    write = _onnx if target.suffix == ".onnx" else _program
    try:
        content = write(plain, example, dynamic, _metadata(model))
    except (ImportError, MemoryError):
        raise
    except Exception as error:  # of many kinds, which torch's exporters do not name
        cause = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ValueError(
            f"torch cannot export this {type(model).__name__} for images of any size: {cause}; "
            "torch.export.export with sizes of its own may"
        ) from error
    if check:
        _compare(plain, channels, content, target)
    write_atomically(target, content)


class Logits(nn.Module):
    """A network whose result is the logits alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """(N, channels, H, W) -> (N, K, H, W)."""
        result: Any = self.network(image)
        logits: Tensor = result["out"] if isinstance(result, dict) else result
        return logits


def _metadata(model: nn.Module) -> dict[str, str]:
    facts = {"network": type(model).__name__}
    palette = getattr(model, "palette", None)
    if palette is not None:
        facts["palette"] = json.dumps(palette.colors.tolist())
    for name in ("grey", "classes"):
        value = getattr(model, name, None)
        if value is not None:
            facts[name] = value if isinstance(value, str) else json.dumps(value)
    return facts


def _dynamic(channels: int, multiple: int) -> tuple[Tensor, dict[str, Any]]:
    """An example and which of its sizes may change, in steps of ``multiple``."""
    sizes = {
        axis: multiple * torch.export.Dim(name, min=1, max=4096)
        if multiple > 1
        else torch.export.Dim(name, min=32, max=8192)
        for axis, name in ((2, "height"), (3, "width"))
    }
    batch = torch.export.Dim("batch", min=1, max=4096)
    return torch.rand(2, channels, 64, 96), {"image": {0: batch, **sizes}}


def _program(
    plain: nn.Module, example: Tensor, dynamic: dict[str, Any], metadata: dict[str, str]
) -> bytes:
    content = io.BytesIO()
    with quietly():
        program = torch.export.export(plain, (example,), dynamic_shapes=dynamic)
        torch.export.save(program, content, extra_files={"colorseg.json": json.dumps(metadata)})
    return content.getvalue()


def _onnx(
    plain: nn.Module, example: Tensor, dynamic: dict[str, Any], metadata: dict[str, str]
) -> bytes:
    for name in ("onnx", "onnxscript"):
        _package(name)
    with quietly():
        program = torch.onnx.export(
            plain, (example,), dynamo=True, verbose=False, dynamic_shapes=dynamic,
            input_names=["image"], output_names=["logits"],
        )  # fmt: skip
    assert program is not None
    model = program.model_proto
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    content: bytes = model.SerializeToString()
    return content


def _compare(plain: nn.Module, channels: int, content: bytes, target: Path) -> None:
    if target.suffix == ".onnx":
        session = _package("onnxruntime").InferenceSession(
            content, providers=["CPUExecutionProvider"]
        )

        def run(image: Tensor) -> Tensor:
            return torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    else:
        run = torch.export.load(io.BytesIO(content)).module()
    for n, height, width in CHECKED:
        image = torch.rand(n, channels, height, width)
        with torch.no_grad():
            want, got = plain(image), run(image)
        if got.shape != want.shape:
            raise ValueError(f"{target} would give {tuple(got.shape)} for {tuple(want.shape)}")
        error = ((got - want).abs().max() / want.abs().max()).item()
        if not error <= ALLOWED:
            raise ValueError(
                f"{target} would differ from the network by {error:.1e} of the largest logit, so "
                "nothing was written; please report this"
            )


def _package(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"exporting to ONNX needs {name}: pip install 'colorseg[export]'"
        ) from error


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Torch's exporters report their progress and their doubts at length; inside they do not."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
