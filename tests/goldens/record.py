"""Record PyTorch's answers to a few calls of each op:  python -m tests.goldens.record  (needs torch)

The calls are drawn from the table of cases, the same at each run; of those drawn, a few of moderate size are kept.
"""

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings

from tests.cases import ALL_CASES
from tests.cases.case import Call, Case
from tests.compare import outcome, torch_outcome
from tests.goldens import Golden, save

CALLS = 3  # kept for each op
MOST_NUMBERS = 80  # in the output and the gradients of one call
DRAWN = settings(
    max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def drawn_calls(case: Case) -> list[Call]:
    found = []

    @DRAWN
    @given(case.calls)
    def collect(call: Call) -> None:
        found.append(Call(tuple(map(rounded, call.inputs)), call.options))

    collect()
    return found


def rounded(x: np.ndarray | None) -> np.ndarray | None:
    """To multiples of 2⁻¹⁰, which compress well."""
    return np.round(x * 1024) / 1024 if x is not None and x.dtype.kind == "f" else x


def grad_output(shape: tuple[int, ...]) -> np.ndarray:
    return rounded(np.random.default_rng(1).standard_normal(shape))


def golden(case: Case, call: Call) -> Golden:
    answers = torch_outcome(torch, case, call, grad_output)
    return Golden(case.name, call, grad_output(answers[0].shape), answers)


def chosen(case: Case) -> list[Golden]:
    """The largest calls that are not too large, of as many kinds as there are: other options, or inputs left out."""
    calls = {}
    for call in drawn_calls(case):
        numbers = [outcome(case, call, grad_output)[0].size, *(call.inputs[i].size for i in case.wanted(call))]
        if min(numbers) and sum(numbers) <= MOST_NUMBERS:
            kind = str(sorted(call.options)) + str([x is None or x.dtype.kind for x in call.inputs])
            calls.setdefault(kind, []).append((sum(numbers), len(calls), call))
    ranked = [sorted(same, key=lambda entry: entry[:2]) for same in calls.values()]
    kept = []
    while len(kept) < CALLS and any(ranked):
        for same in sorted(filter(None, ranked), key=lambda same: -same[-1][0])[: CALLS - len(kept)]:
            kept.append(same.pop()[2])
    return [golden(case, call) for call in kept]


if __name__ == "__main__":
    goldens = [golden for case in ALL_CASES if case.torch is not None for golden in chosen(case)]
    save(goldens)
    print(f"{len(goldens)} calls of {len({golden.case for golden in goldens})} ops")
