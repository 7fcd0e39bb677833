"""Inference by the peers: PyTorch's own ways, ONNX Runtime and OpenVINO, each at its best."""

import contextlib
import warnings
from collections.abc import Callable
from functools import cache, partial
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from colorseg.benchmark.case import Contestant, Unavailable
from colorseg.benchmark.networks import Problem
from colorseg.benchmark.peers import Layout, channels_last, compiled, default_layout
from colorseg.exporting import quietly

Call = Callable[[], Tensor]
Export = Callable[[], bytes]  # of the network as an ONNX file; made once for a case


def _autocast(bfloat16: bool) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16) if bfloat16 else contextlib.nullcontext()


def eager(problem: Problem, layout: Layout, bfloat16: bool = False) -> Call:
    """The modules one by one."""
    model, images = problem.plain(layout), layout(problem.images)

    @torch.inference_mode()
    def call() -> Tensor:
        with _autocast(bfloat16):
            return model(images)

    return call


def compile_(problem: Problem, layout: Layout, bfloat16: bool = False) -> Call:
    """torch.compile with freezing, which folds batch norm and packs the weights ahead."""
    model, images = problem.plain(layout), layout(problem.images)
    run = compiled(model, freezing=True)

    @torch.no_grad()  # freezing does not happen in inference mode
    def call() -> Tensor:
        with _autocast(bfloat16):
            return run(images)

    return call


def freeze(problem: Problem, layout: Layout) -> Call:
    """torch.jit.trace, then torch.jit.freeze."""
    model, images = problem.plain(layout), layout(problem.images)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # TorchScript is deprecated; it may still be the fastest
        frozen = torch.jit.freeze(torch.jit.trace(model, images))

    @torch.inference_mode()
    def call() -> Tensor:
        return frozen(images)

    return call


def _package(name: str) -> ModuleType:
    """The module, or Unavailable with what to do."""
    try:
        return __import__(name)
    except ImportError as error:
        advice = "pip install 'colorseg[benchmark]'"
        raise Unavailable(f"{name} cannot be imported ({error}); {advice}") from None


def export(problem: Problem) -> bytes:
    """The network as an ONNX file for images of the problem's shape."""
    for name in ("onnx", "onnxscript"):
        _package(name)
    with quietly():
        program = torch.onnx.export(problem.plain(), (problem.images,), dynamo=True, verbose=False)
    assert program is not None
    content: bytes = program.model_proto.SerializeToString()
    return content


def onnx_runtime(problem: Problem, exported: Export) -> Call:
    """ONNX Runtime with torch's number of threads, bound to its input and output."""
    runtime = _package("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    # its threads would spin on into the turn of the next contestant
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = runtime.InferenceSession(exported(), options, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        output = torch.empty_like(problem.plain()(problem.images))
    images, binding = problem.images, session.io_binding()
    for bind, value, tensor in (
        (binding.bind_input, session.get_inputs()[0], images),
        (binding.bind_output, session.get_outputs()[0], output),
    ):
        bind(value.name, "cpu", 0, "float32", tuple(tensor.shape), tensor.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return output

    # the session sees addresses only
    call.keep = images, output  # type: ignore[attr-defined]
    return call


def openvino(problem: Problem, exported: Export, bfloat16: bool = False) -> Call:
    """OpenVINO with torch's number of threads, its precision stated: it may choose bfloat16."""
    runtime = _package("openvino")
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    core = runtime.Core()
    request = core.compile_model(
        core.read_model(exported()), "CPU", settings
    ).create_infer_request()
    images = {0: problem.images.numpy()}

    def call() -> Tensor:
        (result,) = request.infer(images, share_inputs=True, share_outputs=True).values()
        return torch.from_numpy(result)

    return call


def settings(problem: Problem, bfloat16: bool) -> dict[str, Callable[[], Contestant]]:
    """All peers of a case by name; each is made, compiled or exported when called."""
    exported = cache(partial(export, problem))
    calls: dict[str, Callable[[], Call]] = {}
    for suffix, layout in (("", default_layout), ("+channels_last", channels_last)):
        name = "channels_last" if suffix else "eager"
        calls[name] = partial(eager, problem, layout, bfloat16)
        calls[f"compile{suffix}"] = partial(compile_, problem, layout, bfloat16)
        if not bfloat16:
            calls[f"jit.freeze{suffix}"] = partial(freeze, problem, layout)
    if not bfloat16:
        calls["ONNX Runtime"] = partial(onnx_runtime, problem, exported)
    calls["OpenVINO"] = partial(openvino, problem, exported, bfloat16)
    return {name: partial(_contestant, make) for name, make in calls.items()}


def _contestant(make: Callable[[], Call]) -> Contestant:
    call = make()
    return Contestant(call, lambda: [call()])
