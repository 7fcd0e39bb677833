"""Networks on CUDA for inference: their work recorded as CUDA graphs, one for each input shape."""

import logging
import threading
from collections import OrderedDict
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from colorseg.nn.capture import captured
from colorseg.nn.inference import InferenceModule, refuse_gradient
from colorseg.ops.chain import Kept, preparing

logger = logging.getLogger(__name__)

MAX_GRAPHS = 8  # of a network; the one that was not used for longest goes
WARM_UP = 3  # runs before a recording: libraries choose their algorithms in the first
# of a network, for its users
FACTS = ("palette", "grey", "num_in_channels", "num_colors")

Result = Tensor | dict[str, Tensor]


class Recording(NamedTuple):
    """A graph, the tensor that it reads, what it writes, and what else it reads."""

    graph: torch.cuda.CUDAGraph
    given: Tensor
    result: Result
    kept: Kept


class GraphedNetwork(InferenceModule):
    """A network on CUDA as it computes in eval mode, replayed as one CUDA graph for each shape.

    What cannot be recorded runs operator by operator, which the log says once.  Threads may share
    it.  Its parameters must not change: graphs read copies of some of them.

    Args:
        network: on a CUDA device; takes a tensor and returns one, or a dict of tensors.  It is put
            into eval mode and kept.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.requires_grad_(False)
        for name in FACTS:
            if hasattr(network, name):
                setattr(self, name, getattr(network, name))
        super().train(False)
        self._forget()

    def forward(self, x: Tensor) -> Result:
        """What the network returns, without gradients."""
        refuse_gradient(x)
        # a tensor that is recorded in inference mode could not be written to outside of it
        with torch.inference_mode(False), torch.no_grad():
            reason = self._why_not(x)
            if reason is not None:
                self._tell(reason)
                return self.network(x)
            with self._lock:
                return self._replay(x)

    def _forget(self) -> None:
        self._recordings: OrderedDict[Any, Recording | None] = OrderedDict()  # None: it failed
        self._told: set[str] = set()
        self._lock = threading.RLock()
        self._stream: torch.cuda.Stream | None = None  # of the last replay

    def _apply(self, *args: Any, **kwargs: Any) -> "GraphedNetwork":
        self._forget()  # parameters move to other addresses
        super()._apply(*args, **kwargs)
        return self

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_recordings", "_told", "_lock", "_stream")
        return {name: value for name, value in self.__dict__.items() if name not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()

    def _why_not(self, x: Tensor) -> str | None:
        """Why there is no graph for ``x``."""
        if x.device.type != "cuda":
            return f"inputs on {x.device} are not on CUDA"
        if torch.cuda.is_current_stream_capturing():
            return "somebody else is recording a graph"
        if torch.is_autocast_enabled("cuda"):
            return "autocast is enabled"
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return "somebody else is tracing it"
        return None

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            logger.warning("the network runs without a CUDA graph: %s", reason)
            self._told.add(reason)

    def _replay(self, x: Tensor) -> Result:
        stream = torch.cuda.current_stream(x.device)
        with torch.cuda.device(x.device):
            if self._stream not in (None, stream):  # it may still read what this would write
                stream.wait_stream(self._stream)
            self._stream = stream
            recording = self._recording(x)
            if recording is None:
                return self.network(x)
            recording.given.copy_(x)
            recording.graph.replay()
            return _copied(recording.result)

    def _recording(self, x: Tensor) -> Recording | None:
        last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
        precision = torch.backends.cudnn.conv.fp32_precision  # type: ignore[attr-defined]
        key = (x.shape, x.dtype, x.device, last, precision)
        if key in self._recordings:
            self._recordings.move_to_end(key)
            return self._recordings[key]
        while len(self._recordings) >= MAX_GRAPHS:
            self._recordings.popitem(last=False)
        layout = torch.channels_last if last else torch.contiguous_format
        try:
            recording = record(self.network, torch.empty_like(x, memory_format=layout).copy_(x))
        except RuntimeError as error:
            self._tell(f"recording failed ({str(error).splitlines()[0]})")
            recording = None
        self._recordings[key] = recording
        return recording


def record(network: nn.Module, given: Tensor) -> Recording:
    """Record ``network(given)``; RuntimeError if it does what a graph cannot repeat."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    kept: Kept = {}
    with torch.cuda.stream(stream), preparing(kept):
        for _ in range(WARM_UP):
            network(given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # other threads may use the device meanwhile
    with captured(graph, capture_error_mode="thread_local"), preparing(kept):
        result = network(given)
    return Recording(graph, given, result, kept)


def _copied(result: Result) -> Result:
    if isinstance(result, dict):
        return {name: t.clone() for name, t in result.items()}
    return result.clone()
