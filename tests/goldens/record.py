"""Record PyTorch's results of a few calls of each op:  python -m tests.goldens.record  (needs torch)

The table of cases generates random calls, the same in each run; a few calls of moderate size are recorded.
"""

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings

from tests.cases import ALL_CASES
from tests.cases.case import Call, Case
from tests.compare import forward_backward, torch_forward_backward
from tests.goldens import Golden, save

CALLS_PER_OP = 3
MAX_ELEMENTS = 80  # of the output and the gradients of one call together
EXAMPLES = settings(
    max_examples=100, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)


def random_calls(case: Case) -> list[Call]:
    calls = []

    @EXAMPLES
    @given(case.calls)
    def collect(call: Call) -> None:
        calls.append(Call(tuple(map(rounded, call.inputs)), call.options))

    collect()
    return calls


def rounded(x: np.ndarray | None) -> np.ndarray | None:
    """Round to multiples of 2⁻¹⁰, which compress well."""
    return np.round(x * 1024) / 1024 if x is not None and x.dtype.kind == "f" else x


def grad_output(shape: tuple[int, ...]) -> np.ndarray:
    return rounded(np.random.default_rng(1).standard_normal(shape))


def golden(case: Case, call: Call) -> Golden:
    results = torch_forward_backward(torch, case, call, grad_output)
    return Golden(case.name, call, grad_output(results[0].shape), results)


def selected_goldens(case: Case) -> list[Golden]:
    """The largest calls of at most MAX_ELEMENTS, of as many signatures (options, dtypes of the inputs) as possible."""
    calls = {}
    for call in random_calls(case):
        sizes = [
            forward_backward(case, call, grad_output)[0].size,
            *(call.inputs[i].size for i in case.differentiable_inputs(call)),
        ]
        if min(sizes) and sum(sizes) <= MAX_ELEMENTS:
            signature = str(sorted(call.options)) + str([x is None or x.dtype.kind for x in call.inputs])
            calls.setdefault(signature, []).append((sum(sizes), len(calls), call))
    by_size = [sorted(same, key=lambda entry: entry[:2]) for same in calls.values()]
    selected = []
    while len(selected) < CALLS_PER_OP and any(by_size):
        for same in sorted(filter(None, by_size), key=lambda same: -same[-1][0])[: CALLS_PER_OP - len(selected)]:
            selected.append(same.pop()[2])
    return [golden(case, call) for call in selected]


if __name__ == "__main__":
    goldens = [golden for case in ALL_CASES if case.torch is not None for golden in selected_goldens(case)]
    save(goldens)
    print(f"{len(goldens)} calls of {len({golden.case for golden in goldens})} ops")
