"""The stages of `python -m tests.gpu`. Their parts do not depend on each other."""

from tests.gpu.stages import ceilings, environment, kernels, launches, properties, steps, training
from tests.gpu.stages.device import alive, release, synchronize
from tests.gpu.stages.stage import Stage, failed
from tests.gpu.stages.steps import Workload, ours, weights_of

__all__ = ["STAGES", "Stage", "Workload", "alive", "failed", "ours", "release", "synchronize", "weights_of"]

STAGES = {  # most important first; less than ten minutes in all
    "environment": Stage(environment.parts, 20, 20, without_gpu=True),
    "kernels": Stage(kernels.parts, 125, 25, without_gpu=True),
    "steps": Stage(steps.parts, 130, 60, without_gpu=False),
    "training": Stage(training.parts, 60, 30, without_gpu=False),
    "ceilings": Stage(ceilings.parts, 35, 15, without_gpu=False),
    "launches": Stage(launches.parts, 15, 10, without_gpu=False),
    "properties": Stage(properties.parts, 80, 80, without_gpu=False),
    "compiled": Stage(steps.compiled_parts, 100, 100, without_gpu=False),
}
