"""Recording CUDA graphs, so that a failure harms nothing but the recording."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def captured(graph: torch.cuda.CUDAGraph, **options: Any) -> Iterator[None]:
    """``torch.cuda.graph(graph, **options)``, after whose failure random numbers can be drawn.

    Raises:
        RuntimeError: what ran inside cannot be recorded.
    """
    generator = torch.cuda.default_generators[torch.cuda.current_device()]
    spare = generator.clone_state()
    try:
        with torch.cuda.graph(graph, **options):
            yield
    except RuntimeError:
        # torch leaves the generator waiting for the end of a recording that never comes
        generator.graphsafe_set_state(spare)
        raise
