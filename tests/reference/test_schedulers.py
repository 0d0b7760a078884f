"""Learning-rate schedulers against PyTorch: the learning rate and momentum of 200 steps, states, chains."""

import numpy as np
import pytest

from minigrad import nn, optim
from minigrad.optim import lr_scheduler

torch = pytest.importorskip("torch")

CASES = {
    "step": lambda S, o: S.StepLR(o, 7, gamma=0.5),
    "step of 1": lambda S, o: S.StepLR(o, step_size=1, gamma=0.97),
    "milestones": lambda S, o: S.MultiStepLR(o, [30, 30, 80], gamma=0.3),
    "exponential": lambda S, o: S.ExponentialLR(o, 0.95),
    "exponential growth": lambda S, o: S.ExponentialLR(o, 1.01),
    "cosine": lambda S, o: S.CosineAnnealingLR(o, 200),
    "cosine with a minimum": lambda S, o: S.CosineAnnealingLR(o, T_max=150, eta_min=0.01),
    "cosine up and down": lambda S, o: S.CosineAnnealingLR(o, 13, eta_min=1e-3),
    "cosine of 1": lambda S, o: S.CosineAnnealingLR(o, 1, eta_min=0.1),
    "linear": lambda S, o: S.LinearLR(o),
    "linear decay": lambda S, o: S.LinearLR(o, 1.0, 0.0, total_iters=50),
    "constant": lambda S, o: S.ConstantLR(o, factor=0.25, total_iters=9),
    "polynomial": lambda S, o: S.PolynomialLR(o, total_iters=120, power=2.0),
    "polynomial root": lambda S, o: S.PolynomialLR(o, total_iters=200, power=0.5),
    "lambda": lambda S, o: S.LambdaLR(o, lambda t: 0.95**t),
    "lambda of each group": lambda S, o: S.LambdaLR(o, [lambda t: 1 / (1 + t), lambda t: 0.9]),
    "multiplicative": lambda S, o: S.MultiplicativeLR(o, lambda t: 0.99),
    "one cycle": lambda S, o: S.OneCycleLR(o, max_lr=0.5, total_steps=201),
    "one cycle linear": lambda S, o: S.OneCycleLR(o, 0.5, 200, pct_start=0.1, anneal_strategy="linear"),
    "one cycle three phases": lambda S, o: S.OneCycleLR(o, [0.5, 1.0], epochs=15, steps_per_epoch=14, three_phase=True),
    "one cycle factors": lambda S, o: S.OneCycleLR(
        o, 1.0, 300, div_factor=10.0, final_div_factor=100.0, base_momentum=0.7, max_momentum=0.9
    ),
    "one cycle without momentum": lambda S, o: S.OneCycleLR(o, 1.0, 201, cycle_momentum=False),
    "restarts": lambda S, o: S.CosineAnnealingWarmRestarts(o, 10),
    "longer restarts": lambda S, o: S.CosineAnnealingWarmRestarts(o, 5, T_mult=2, eta_min=1e-3),
    "cyclic": lambda S, o: S.CyclicLR(o, 0.01, 0.5, step_size_up=15),
    "cyclic halved": lambda S, o: S.CyclicLR(
        o, [0.01, 0.1], [0.5, 1.0], 7, 20, mode="triangular2", base_momentum=0.7, max_momentum=0.95
    ),
    "cyclic decay": lambda S, o: S.CyclicLR(o, 0.1, 0.5, 10, mode="exp_range", gamma=0.99, cycle_momentum=False),
    "cyclic lambda": lambda S, o: S.CyclicLR(o, 0.1, 0.5, 10, scale_fn=lambda t: 1 / (1 + t), scale_mode="iterations"),
    "chained": lambda S, o: S.ChainedScheduler([S.ConstantLR(o, 0.1, 20), S.ExponentialLR(o, 0.97)], optimizer=o),
    "warm-up and cosine": lambda S, o: S.SequentialLR(
        o, [S.LinearLR(o, 0.1, total_iters=20), S.CosineAnnealingLR(o, 181)], milestones=[20]
    ),
    "three in sequence": lambda S, o: S.SequentialLR(
        o, [S.ConstantLR(o, 0.1, 10), S.ExponentialLR(o, 0.9), S.StepLR(o, 20, 0.5)], milestones=[10, 60]
    ),
}


def sgd(library, parameter):
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": 0.8}]
    return library.SGD(groups, lr=0.3, momentum=0.9)


def adam(library, parameter):
    groups = [{"params": [parameter()]}, {"params": [parameter()], "lr": 0.8}]
    return library.AdamW(groups, lr=0.3, betas=(0.8, 0.99))


SIDES = [
    (lr_scheduler, optim, lambda: nn.Parameter(np.ones(1))),
    (torch.optim.lr_scheduler, torch.optim, lambda: torch.nn.Parameter(torch.ones(1))),
]


def rates(optimizer):
    return [[g["lr"], g["betas"][0] if "betas" in g else g["momentum"]] for g in optimizer.param_groups]


def table(optimizer, schedulers, steps=200):
    """(steps + 1, groups, 2): learning rate and momentum before each step, and after the last."""
    rows = [rates(optimizer)]
    for _ in range(steps):
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
        assert schedulers[-1].get_last_lr() == [lr for lr, _ in rates(optimizer)]
        rows.append(rates(optimizer))
    return np.array(rows, np.float64)


@pytest.mark.filterwarnings("ignore")  # PyTorch's deprecation of `step(epoch)`, which its SequentialLR calls
@pytest.mark.parametrize("make_optimizer", [sgd, adam])
@pytest.mark.parametrize("make", CASES.values(), ids=CASES)
def test_scheduler_equals_pytorch(make, make_optimizer):
    tables = []
    for schedulers, optimizers, parameter in SIDES:
        optimizer = make_optimizer(optimizers, parameter)
        tables.append(table(optimizer, [make(schedulers, optimizer)]))
    np.testing.assert_allclose(*tables, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("names", [("exponential", "milestones"), ("cosine", "linear"), ("step", "lambda")])
def test_chained_schedulers_equal_pytorch(names):
    tables = []
    for schedulers, optimizers, parameter in SIDES:
        optimizer = sgd(optimizers, parameter)
        tables.append(table(optimizer, [CASES[name](schedulers, optimizer) for name in names]))
    np.testing.assert_allclose(*tables, rtol=1e-12, atol=1e-15)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in CASES if "lambda" not in name and name != "multiplicative"])
def test_scheduler_continues_from_its_state(name):
    whole = sgd(optim, SIDES[0][2])
    expected = table(whole, [CASES[name](lr_scheduler, whole)])
    first, second = (sgd(optim, SIDES[0][2]) for _ in range(2))
    one = CASES[name](lr_scheduler, first)
    table(first, [one], 77)
    two = CASES[name](lr_scheduler, second)
    second.load_state_dict(first.state_dict())
    two.load_state_dict(one.state_dict())
    np.testing.assert_array_equal(table(second, [two], 200 - 77), expected[77:])


RESUMED = {
    "step": lambda S, o: S.StepLR(o, 20, gamma=0.5, last_epoch=19),
    "milestones": lambda S, o: S.MultiStepLR(o, [20, 30], last_epoch=19),
    "exponential": lambda S, o: S.ExponentialLR(o, 0.9, last_epoch=19),
    "cosine": lambda S, o: S.CosineAnnealingLR(o, 50, 0.01, last_epoch=19),
    "linear": lambda S, o: S.LinearLR(o, total_iters=30, last_epoch=19),
    "polynomial": lambda S, o: S.PolynomialLR(o, total_iters=30, last_epoch=19),
    "constant": lambda S, o: S.ConstantLR(o, 0.5, 20, last_epoch=19),
    "lambda": lambda S, o: S.LambdaLR(o, lambda t: 0.9**t, last_epoch=19),
    "multiplicative": lambda S, o: S.MultiplicativeLR(o, lambda t: 0.9, last_epoch=19),
    "restarts": lambda S, o: S.CosineAnnealingWarmRestarts(o, 10, last_epoch=19),
    "cyclic": lambda S, o: S.CyclicLR(o, 0.1, 0.5, 8, last_epoch=19),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", RESUMED.values(), ids=RESUMED)
def test_last_epoch_resumes_as_in_pytorch(make):
    tables = []
    for schedulers, optimizers, parameter in SIDES:
        optimizer = sgd(optimizers, parameter)
        with pytest.raises(KeyError):
            make(schedulers, optimizer)
        for group in optimizer.param_groups:
            group["initial_lr"] = 2 * group["lr"]
        tables.append(table(optimizer, [make(schedulers, optimizer)], 40))
    np.testing.assert_allclose(*tables, rtol=1e-12, atol=1e-15)


def test_chained_schedulers_need_one_optimizer():
    for schedulers, optimizers, parameter in SIDES:
        one, two = (schedulers.StepLR(sgd(optimizers, parameter), 2) for _ in range(2))
        with pytest.raises(ValueError, match="optimizer"):
            schedulers.ChainedScheduler([one, two])


def test_restarts_at_fractions_of_an_epoch_equal_pytorch():
    found = []
    for schedulers, optimizers, parameter in SIDES:
        optimizer = sgd(optimizers, parameter)
        scheduler = schedulers.CosineAnnealingWarmRestarts(optimizer, 3, 2)
        found.append([])
        for i in range(200):
            optimizer.step()
            scheduler.step(i / 8)
            found[-1].append(rates(optimizer))
    np.testing.assert_allclose(*found, rtol=1e-12)


PLATEAUS = {
    "default": {"patience": 3},
    "max": {"mode": "max", "patience": 2, "factor": 0.5},
    "absolute": {"threshold": 0.05, "threshold_mode": "abs", "patience": 1},
    "absolute max": {"mode": "max", "threshold": 0.05, "threshold_mode": "abs", "patience": 1},
    "cooldown": {"patience": 1, "cooldown": 4, "min_lr": [1e-3, 1e-2]},
    "small changes": {"patience": 0, "eps": 0.01},
}


@pytest.mark.parametrize("options", PLATEAUS.values(), ids=PLATEAUS)
def test_plateau_equals_pytorch(options):
    metrics = np.random.default_rng(0).uniform(0.1, 2, 200) / np.arange(1, 201) ** 0.2
    found = []
    for schedulers, optimizers, parameter in SIDES:
        optimizer = sgd(optimizers, parameter)
        scheduler = schedulers.ReduceLROnPlateau(optimizer, **options)
        found.append([])
        for metric in metrics:
            optimizer.step()
            scheduler.step(metric)
            found[-1].append((scheduler.get_last_lr(), scheduler.num_bad_epochs, scheduler.last_epoch)[0])
    np.testing.assert_allclose(*found, rtol=1e-12)
    assert len(np.unique(found[0])) > 2


def steps(optimizer, scheduler, count):
    for _ in range(count):
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda S, o: S.OneCycleLR(o, 0.1),
        lambda S, o: S.OneCycleLR(o, 0.1, 10, pct_start=2.0),
        lambda S, o: S.OneCycleLR(o, 0.1, 10, anneal_strategy="square"),
        lambda S, o: S.LinearLR(o, 0.0),
        lambda S, o: S.ConstantLR(o, 1.5),
        lambda S, o: S.LambdaLR(o, [abs]),
        lambda S, o: S.CosineAnnealingWarmRestarts(o, 0),
        lambda S, o: S.ReduceLROnPlateau(o, factor=1.0),
        lambda S, o: S.ReduceLROnPlateau(o, "low"),
        lambda S, o: S.SequentialLR(o, [S.LinearLR(o)], milestones=[3]),
        lambda S, o: S.CyclicLR(o, 0.1, [0.5]),
        lambda S, o: S.CyclicLR(o, 0.1, 0.5, mode="square"),
        lambda S, o: S.ChainedScheduler([]),
        lambda S, o: S.ChainedScheduler([S.ReduceLROnPlateau(o)]),
        lambda S, o: steps(o, S.OneCycleLR(o, 0.1, 3), 4),
    ],
)
def test_invalid_use_is_refused_as_in_pytorch(make):
    for schedulers, optimizers, parameter in SIDES:
        with pytest.raises(ValueError):
            make(schedulers, sgd(optimizers, parameter))
