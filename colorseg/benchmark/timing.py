"""Checks the contestants of a case, then times them in turns."""

import math
import sys
import time
from collections.abc import Callable, Collection, Sequence

import torch

from colorseg.benchmark.case import Case, Contestant, Make, Times, Unavailable
from colorseg.benchmark.parity import check_parity

WARM_UP = 3
# What the previous contestant left behind must not decide: its threads may spin for a while, and
# ours may sleep.  So a turn begins with a pause and a call that is not timed, for everybody alike,
# and short calls are repeated in a turn until it takes this long.
PAUSE_S = 2e-3
TURN_MS, MOST_CALLS = 5.0, 20


def prepare(
    case: Case, peers: Collection[str], report: Callable[[str], object]
) -> dict[str, Contestant]:
    """Ours and the peers that can run here, all checked against the float64 reference.

    The others are reported.  Unavailable: ours or every peer is among them.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # it compiles a function for a handful of networks only
    want = case.reference()
    made = {"ours": case.ours()}
    check_parity(want, f"{case}, ours", made["ours"].results(), case.allowed)
    for who in peers:
        try:
            made[who], got = _first_call(case.peers[who])
        except Exception as error:  # other people's software: any kind, and none of it ours to fix
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            report(f"left out: {who}, {reason}")
        else:
            check_parity(want, f"{case}, {who}", got, case.allowed)
    if len(made) == 1:
        raise Unavailable("there is no peer that can run")
    return made


def _first_call(make: Make) -> tuple[Contestant, Sequence[torch.Tensor]]:
    contestant = make()
    return contestant, contestant.results()


Turn = Callable[[Callable[[], object], int], float]  # ms of a call, of so many in a row


def measure(
    contestants: dict[str, Contestant], rounds: int, turn: Turn | None = None
) -> dict[str, Times]:
    """Time them, a turn each per round: A B C, A B C, ...; ``turn`` is that of the CPU."""
    turn = turn or cpu_turn
    calls = {name: contestant.call for name, contestant in contestants.items()}
    slowest = max(min(turn(call, 1) for _ in range(WARM_UP)) for call in calls.values())
    repeats = min(max(math.ceil(TURN_MS / max(slowest, 1e-6)), 1), MOST_CALLS)
    times: dict[str, Times] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(turn(call, repeats))
    return times


def cpu_turn(call: Callable[[], object], repeats: int) -> float:
    """A pause, a call, and then the ms of each of ``repeats``."""
    time.sleep(PAUSE_S)
    call()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return 1e3 * (time.perf_counter() - start) / repeats
