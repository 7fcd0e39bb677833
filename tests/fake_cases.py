"""Cases that take no time, for the tests of the harness."""

import pytest
import torch

from colorseg.benchmark import Case, Contestant, harness, timing


class StillLimits:
    """Limits that need no measuring."""

    memory = 10.0

    def copy(self, size):
        return 2.0

    def peak(self, dtype):
        return 100.0

    def __str__(self):
        return "limits: none"


def contestant(name, log, result=1.0):
    results = [torch.tensor(result)]
    return lambda: Contestant(lambda: log.append(name), lambda: results)


def fake(name="small", log=None, ours=1.0, peers=("eager", "other"), **work):
    log = [] if log is None else log
    made = {who: contestant(who, log) for who in peers}
    mine = contestant("ours", log, ours)
    want = lambda: [torch.tensor(1.0)]  # noqa: E731
    return Case("add", name, (2, 3), "float32", "forward", mine, made, want, **work)


@pytest.fixture
def same_process(monkeypatch):
    """A run sets up its process, threads and allocator; other tests have theirs."""
    before = torch.get_num_threads()
    monkeypatch.setattr(harness, "_keep_memory", lambda: None)
    monkeypatch.setattr(harness, "Limits", StillLimits)
    monkeypatch.setattr(timing, "TURN_MS", 0)
    yield
    torch.set_num_threads(before)
