"""Peak memory of a call, as PyTorch's profiler sees it."""

from collections.abc import Callable

from torch.profiler import ProfilerActivity, profile

from colorseg._extension import limit_kept_memory


def peak_memory(call: Callable[[], object]) -> int:
    """Bytes that ``call`` holds at most at once beyond what was there before.

    The largest running sum of the allocations and releases in torch's allocator: tensors, and
    workspaces if they are tensors; scratch that a library takes from the system is not seen.  Call
    it once before, so that what is made once (optimizer state) does not count.  Meanwhile
    colorseg's operators keep no memory, which would not be seen.
    """
    limit = limit_kept_memory(0)
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            call()
    finally:
        limit_kept_memory(limit)
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda event: event[0]):
        held += change
        peak = max(peak, held)
    return peak
