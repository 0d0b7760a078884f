"""Training steps on any number of ranks.

    mpiexec -n 4 python -m tests.train.ranks --model swin --steps 50 --save FILE

Rank 0 writes losses, parameters, buffers and EMA after the last step. Every rank checks after each step that its
parameters equal those of rank 0 bit for bit.
"""

import argparse
from dataclasses import replace

import numpy as np

import models
from minigrad import manual_seed, nn, parallel
from models.roadmap import RoadmapNet
from tests.train.small import EVERYTHING, Small
from train.__main__ import parse
from train.create import create_trainer
from train.data import shapes
from train.data.batches import batches
from train.ranks import check_parameters

MODELS = {
    "small": Small,
    "vit": lambda: models.create_model("vit_nano_cifar", drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2),
    "hybrid": lambda: models.create_model("hybrid_nano_cifar", drop_rate=0.1, drop_path_rate=0.2),
    "swin": lambda: models.create_model("swin_nano_cifar", drop_rate=0.1, attn_drop_rate=0.1, drop_path_rate=0.2),
    "convnext": lambda: models.create_model("convnext_atto_cifar", drop_path_rate=0.2),
    "roadmap": lambda: RoadmapNet(
        img_size=32, num_classes=10, stem_stride=2, depths=(1, 1, 2, 1), width=8, drop_path_rate=0.2
    ),
}
"""Models with dropout and drop path; `roadmap` with batch normalisation."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="vit")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float64")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--images", type=int, default=104)
    parser.add_argument("--save", required=True)
    parser.add_argument("flags", nargs="*", help="flags of python -m train, after --")
    arguments = parser.parse_args()
    losses, state = train(arguments)
    if parallel.world().rank == 0:
        np.savez(arguments.save, losses=losses, **state)


def train(arguments: argparse.Namespace) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    world = parallel.world()
    dataset = shapes.load(arguments.images, 20)
    flags = ["--batch-size", str(arguments.batch_size), "--model-ema", "--epochs", "1000"]
    settings = replace(parse([*flags, "--warmup-epochs", "1", *arguments.flags]), **EVERYTHING)
    manual_seed(settings.seed)
    model: nn.Module = MODELS[arguments.model]()
    trainer = create_trainer(settings, model.to(dtype=np.dtype(arguments.dtype)), dataset, world)
    step, normalize = trainer.step, trainer.step.transform.normalize
    step.transform = replace(step.transform, normalize=lambda images: normalize(images).astype(arguments.dtype))
    losses = []
    with step.shards:
        while len(losses) < arguments.steps:
            trainer.model.train()
            order = trainer.sampler.sample()
            for part in list(batches(len(order), step.images_per_step))[: arguments.steps - len(losses)]:
                step.clear()
                trainer.advance(order[part])
                losses.append(step.sums.means(part.stop - part.start))
                check_parameters(world, trainer.model, len(losses))
    assert step.ema is not None
    state = {f"model/{name}": x.numpy() for name, x in trainer.model.state_dict().items()}
    return np.array(losses), state | {f"ema/{name}": x for name, x in step.ema.state_dict().items()}


if __name__ == "__main__":
    main()
