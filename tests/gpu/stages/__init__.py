"""The stages of `python -m tests.gpu`, and those of each of its commands. Their parts do not depend on each other."""

from functools import partial
from math import inf

from tests.gpu.stages import (
    ceilings,
    environment,
    kernels,
    launches,
    precompile,
    profile,
    properties,
    smoke,
    steps,
    training,
)
from tests.gpu.stages.contenders import Workload, ours, weights_of
from tests.gpu.stages.device import alive, release, synchronize
from tests.gpu.stages.stage import Stage, failed, missing

__all__ = [
    "COMMANDS", "SECONDS", "STAGES", "Stage", "Workload", "alive", "failed", "longest", "missing", "ours", "release",
    "synchronize", "weights_of",
]  # fmt: skip

TORCH = ("cupy", "torch", "timm")
CIFAR10 = ("cupy", "CIFAR-10")
STAGES = {
    "environment": Stage(environment.parts, 15, 15, needs=(), without_gpu=True),
    "unpack": Stage(precompile.unpack_parts, 60, 60, needs=("CIFAR-10",), background=True),
    "precompile": Stage(precompile.parts, 75, 75, background=True),
    "precompile_cases": Stage(precompile.cases_parts, 75, 75, background=True),
    "smoke": Stage(smoke.parts, 90, 60, without_gpu=True),
    "kernels": Stage(kernels.parts, 65, 30, without_gpu=True, waits=True),
    "ceilings": Stage(ceilings.parts, 25, 15, waits=True),
    "steps": Stage(partial(steps.parts, steps.VIT + steps.OTHERS + steps.HYBRID), 90, 60, waits=True),
    "training": Stage(training.parts, 60, 60, needs=CIFAR10, waits=True),
    "compiled": Stage(partial(steps.compiled_parts, steps.VIT), 65, 60, needs=TORCH, waits=True),
    "large": Stage(partial(steps.parts, steps.LARGE), 70, 60, waits=True),
    "properties": Stage(properties.parts, 75, 75, needs=("cupy", "pytest", "hypothesis")),
    "compiled_others": Stage(partial(steps.compiled_parts, steps.OTHERS), 55, 55, needs=TORCH, waits=True),
    "profile": Stage(profile.parts, 30, 30, needs=("cupy", "ncu"), waits=True),
    "launches": Stage(launches.parts, 10, 10, waits=True),
    "runs": Stage(training.all_runs, inf, inf, needs=CIFAR10, waits=True),
}
COMMANDS = {  # the stages of a command, most important first
    "first": (
        "environment", "unpack", "precompile", "precompile_cases", "smoke", "kernels", "ceilings", "steps", "training",
        "compiled", "large",
    ),
    "second": ("properties", "compiled_others", "profile", "launches"),
    "third": ("environment", "unpack", "runs"),
}  # fmt: skip
SECONDS = {"first": 490, "second": 175, "third": 480}  # of a command


def longest(names: tuple[str, ...]) -> float:
    """Seconds after which the stages have ended, if each takes its limit."""
    now, background = 0.0, 0.0
    for stage in map(STAGES.__getitem__, names):
        if stage.background:
            background = max(background, now + stage.seconds)
        else:
            now = (max(now, background) if stage.waits else now) + stage.seconds
    return max(now, background)
