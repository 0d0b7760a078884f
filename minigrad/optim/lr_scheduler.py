"""L5: PyTorch's learning-rate schedulers: call `scheduler.step()` after each epoch, or after each optimizer step.

t counts the calls of `step` (`last_epoch`); base is the learning rate of a group when its first scheduler is created,
which the group keeps as `initial_lr`. Except where a class says otherwise, step t multiplies the current learning rate
by f(t) / f(t - 1): alone, a scheduler gives lr(t) = base · f(t), and schedulers of one optimizer multiply.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import cos, inf, pi
from typing import Any, ClassVar

from minigrad.optim.optimizer import Optimizer


class LRScheduler:
    """The base class. A subclass defines `get_lr`, the learning rates of the groups at `last_epoch`.

    Args:
        last_epoch: t of the last step of the run that is continued; -1 to start. (Loading the state_dict of the
            scheduler is simpler.)
    """

    changes_on_resume: ClassVar[bool] = True  # False: as in PyTorch, the first step after `last_epoch` keeps the rate

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"{type(optimizer).__name__} is not an Optimizer")
        self.optimizer, self.last_epoch = optimizer, last_epoch
        for i, group in enumerate(optimizer.param_groups):
            if last_epoch == -1:
                group.setdefault("initial_lr", float(group["lr"]))
            elif "initial_lr" not in group:
                raise KeyError(f"initial_lr is missing in param_groups[{i}], which a resumed schedule needs")
        self.base_lrs = [float(group["initial_lr"]) for group in optimizer.param_groups]
        if last_epoch == -1 or self.changes_on_resume:
            self.step()
        else:
            self.last_epoch += 1
            self._set(self.current())

    def get_lr(self) -> list[float]:
        """The learning rate of each group at `last_epoch`, computed from the current one."""
        raise NotImplementedError(f"{type(self).__name__} has no get_lr")

    def current(self) -> list[float]:
        """The current learning rate of each group."""
        return [float(group["lr"]) for group in self.optimizer.param_groups]

    def get_last_lr(self) -> list[float]:
        """The learning rates that the last `step` set."""
        return self._last_lr

    def step(self) -> None:
        """Set the learning rates of the next epoch."""
        self.last_epoch += 1
        self._set(self.get_lr())

    def restart(self) -> None:
        """Set t = 0 and the learning rates of t = 0."""
        self.last_epoch = -1
        self._set(self.base_lrs)
        self.step()

    def _set(self, rates: Sequence[float]) -> None:
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = float(lr)
        self._last_lr = self.current()

    def state_dict(self) -> dict[str, Any]:
        """All attributes except the optimizer and functions: numbers, lists and dicts."""
        return {name: x for name, x in vars(self).items() if name != "optimizer" and not _has_function(x)}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a `state_dict`. The learning rates are part of the optimizer's state."""
        vars(self).update(state_dict)


def _has_function(x: Any) -> bool:
    return callable(x) or (isinstance(x, list | tuple) and any(map(_has_function, x)))


def _of_each_group(value: float | Sequence[float], name: str, scheduler: str, optimizer: Optimizer) -> list[float]:
    """One value for each group, from a number or from as many values."""
    groups = len(optimizer.param_groups)
    values = list(value) if isinstance(value, Sequence) else [value] * groups
    if len(values) != groups:
        raise ValueError(f"{scheduler}: needs one value {name} for each group, {groups}, got {len(values)}")
    return values


class _Factor(LRScheduler):
    """lr(t) = lr(t - 1) · f(t) / f(t - 1)."""

    def factor(self, t: int) -> float:
        """f(t)."""
        raise NotImplementedError

    def get_lr(self) -> list[float]:
        t = self.last_epoch
        now, before = self.factor(t), self.factor(t - 1) if t else 1.0
        if before == 0:
            return [base * now for base in self.base_lrs]
        return [lr * (now / before) for lr in self.current()]


class StepLR(_Factor):
    """f(t) = gamma^⌊t / step_size⌋"""

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1) -> None:
        _positive(step_size, "step_size", "StepLR")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int) -> float:
        return self.gamma ** (t // self.step_size)


class MultiStepLR(_Factor):
    """f(t) = gamma^(number of milestones up to t)"""

    def __init__(
        self, optimizer: Optimizer, milestones: Iterable[int], gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        self.milestones, self.gamma = sorted(milestones), gamma
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int) -> float:
        return self.gamma ** bisect_right(self.milestones, t)


class ExponentialLR(_Factor):
    """f(t) = gammaᵗ"""

    changes_on_resume = False

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int) -> float:
        return self.gamma**t


class ConstantLR(_Factor):
    """f(t) = factor for t < total_iters, then 1."""

    def __init__(
        self, optimizer: Optimizer, factor: float = 1.0 / 3, total_iters: int = 5, last_epoch: int = -1
    ) -> None:
        if not 0 <= factor <= 1:
            raise ValueError(f"ConstantLR: factor must be from 0 to 1, got {factor}")
        self.start_factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int) -> float:
        return self.start_factor if t < self.total_iters else 1.0


class LinearLR(_Factor):
    """f(t) = start_factor + (end_factor - start_factor) · min(t / total_iters, 1)"""

    changes_on_resume = False

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        if not (0 < start_factor <= 1 and 0 <= end_factor <= 1):
            factors = f"{start_factor} and {end_factor}"
            raise ValueError(f"LinearLR: needs start_factor above 0 to 1, and end_factor from 0 to 1, got {factors}")
        self.start_factor, self.end_factor, self.total_iters = start_factor, end_factor, total_iters
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int) -> float:
        done = min(t / self.total_iters, 1.0) if self.total_iters else 1.0
        return self.start_factor + (self.end_factor - self.start_factor) * done


class PolynomialLR(_Factor):
    """f(t) = (1 - min(t / total_iters, 1))^power"""

    changes_on_resume = False

    def __init__(self, optimizer: Optimizer, total_iters: int = 5, power: float = 1.0, last_epoch: int = -1) -> None:
        _positive(total_iters, "total_iters", "PolynomialLR")
        self.total_iters, self.power = total_iters, power
        super().__init__(optimizer, last_epoch)

    def factor(self, t: int) -> float:
        return (1 - min(t / self.total_iters, 1.0)) ** self.power


class LambdaLR(LRScheduler):
    """lr(t) = base · lr_lambda(t), with one function for all groups, or one for each."""

    def __init__(self, optimizer: Optimizer, lr_lambda: Any, last_epoch: int = -1) -> None:
        groups = len(optimizer.param_groups)
        self.lr_lambdas = list(lr_lambda) if isinstance(lr_lambda, list | tuple) else [lr_lambda] * groups
        if len(self.lr_lambdas) != groups:
            raise ValueError(
                f"{type(self).__name__}: needs one function for each group, {groups}, got {len(self.lr_lambdas)}"
            )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        pairs = zip(self.base_lrs, self.lr_lambdas, strict=True)
        return [base * function(self.last_epoch) for base, function in pairs]


class MultiplicativeLR(LambdaLR):
    """lr(t) = lr(t - 1) · lr_lambda(t), from t = 1 on."""

    changes_on_resume = False

    def get_lr(self) -> list[float]:
        if not self.last_epoch:
            return self.current()
        pairs = zip(self.current(), self.lr_lambdas, strict=True)
        return [lr * function(self.last_epoch) for lr, function in pairs]


class CosineAnnealingLR(LRScheduler):
    """lr(t) = eta_min + (base - eta_min) · c(t) / 2, c(t) = 1 + cos(π t / T_max); t may exceed T_max.

    Computed from lr(t - 1) by (lr - eta_min) · c(t) / c(t - 1), so that schedulers multiply; c(t - 1) = 0 at the
    minimum, where lr(t) - lr(t - 1) = (base - eta_min) · c(t) / 2.  Loshchilov and Hutter 2016, arXiv:1608.03983.
    """

    changes_on_resume = False

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0, last_epoch: int = -1) -> None:
        _positive(T_max, "T_max", "CosineAnnealingLR")
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        t, low = self.last_epoch, self.eta_min
        if t == 0:
            return self.current()
        now = 1 + cos(pi * t / self.T_max)
        if (t - 1 - self.T_max) % (2 * self.T_max) == 0:
            return [lr + (base - low) * now / 2 for lr, base in zip(self.current(), self.base_lrs, strict=True)]
        before = 1 + cos(pi * (t - 1) / self.T_max)
        return [low + (lr - low) * (now / before) for lr in self.current()]


class CosineAnnealingWarmRestarts(LRScheduler):
    """lr = eta_min + (base - eta_min) · ½ (1 + cos(π T_cur / T_i)), T_cur epochs after the last restart: SGDR.

    Period i has T_i = T_0 · T_mult^i epochs.  Loshchilov and Hutter 2016, arXiv:1608.03983.
    """

    def __init__(
        self, optimizer: Optimizer, T_0: int, T_mult: int = 1, eta_min: float = 0.0, last_epoch: int = -1
    ) -> None:
        if T_0 < 1 or T_mult < 1 or not isinstance(T_0, int) or not isinstance(T_mult, int):
            raise ValueError(f"CosineAnnealingWarmRestarts: needs integers T_0, T_mult from 1 on, got {T_0}, {T_mult}")
        self.T_0, self.T_mult, self.eta_min = T_0, T_mult, eta_min
        self.T_i, self.T_cur = T_0, float(last_epoch)
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        half = (1 + cos(pi * self.T_cur / self.T_i)) / 2
        return [self.eta_min + (base - self.eta_min) * half for base in self.base_lrs]

    def step(self, epoch: float | None = None) -> None:
        """Set the learning rates of the next epoch, or of `epoch`, which may be a fraction: epoch + i / batches."""
        if epoch is None:
            epoch = self.last_epoch + 1
        elif epoch < 0:
            raise ValueError(f"CosineAnnealingWarmRestarts: epoch must not be negative, got {epoch}")
        self.T_cur, self.T_i = epoch, self.T_0
        while self.T_cur >= self.T_i:
            self.T_cur, self.T_i = self.T_cur - self.T_i, self.T_i * self.T_mult
        self.last_epoch = int(epoch // 1)
        self._set(self.get_lr())


class OneCycleLR(LRScheduler):
    """Rise from max_lr / div_factor to max_lr, then fall to 1 / final_div_factor of the start, in total_steps steps.

    The momentum (β₁ of Adam) falls from max_momentum to base_momentum while the learning rate rises, and back. With
    three_phase, the fall has two phases: to the start in as many steps as the rise, then to the end. Between two values
    the change is a half cosine, or linear.  Smith and Topin 2017, arXiv:1708.07120.

    Args:
        max_lr: a number, or one for each group; likewise the momenta.
        total_steps: the number of steps; or epochs · steps_per_epoch.
        pct_start: the part of the cycle in which the learning rate rises.
        anneal_strategy: "cos" or "linear".
        cycle_momentum: False: the momentum is constant.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: str = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        if total_steps is None:
            if epochs is None or steps_per_epoch is None:
                raise ValueError("OneCycleLR: give total_steps, or epochs and steps_per_epoch")
            total_steps = epochs * steps_per_epoch
        if total_steps < 1 or not 0 <= pct_start <= 1:
            raise ValueError(
                f"OneCycleLR: needs total_steps from 1 on and pct_start from 0 to 1, got {total_steps} and {pct_start}"
            )
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(f'OneCycleLR: anneal_strategy must be "cos" or "linear", got {anneal_strategy!r}')
        if cycle_momentum and not {"momentum", "betas"} & set(optimizer.defaults):
            raise ValueError("OneCycleLR: this optimizer has no momentum: give cycle_momentum=False")
        self.total_steps, self.anneal_strategy, self.cycle_momentum = total_steps, anneal_strategy, cycle_momentum
        rise, last = pct_start * total_steps - 1, total_steps - 1
        lr, momentum = ("initial_lr", "max_lr", "min_lr"), ("max_momentum", "base_momentum")
        # (last step, learning rate from, to, momentum from, to) of each phase
        self.phases: list[list[Any]] = [[rise, *lr[:2], *momentum]]
        if three_phase:
            self.phases += [[2 * rise, lr[1], lr[0], *momentum[::-1]], [last, lr[0], lr[2], momentum[0], momentum[0]]]
        else:
            self.phases += [[last, *lr[1:], *momentum[::-1]]]
        if last_epoch == -1:
            options = {"max_lr": max_lr, "base_momentum": base_momentum, "max_momentum": max_momentum}
            values = {
                name: _of_each_group(value, name, "OneCycleLR", optimizer)
                for name, value in list(options.items())[: 3 if cycle_momentum else 1]
            }
            for i, group in enumerate(optimizer.param_groups):
                group.update({name: each[i] for name, each in values.items()})
                group["initial_lr"] = group["max_lr"] / div_factor
                group["min_lr"] = group["initial_lr"] / final_div_factor
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The learning rates of step t. Sets the momenta."""
        if self.last_epoch > self.total_steps:
            raise ValueError(f"OneCycleLR: step {self.last_epoch} of a cycle of {self.total_steps} steps")
        ends = [end for end, *_ in self.phases]
        i = min(bisect_left(ends, self.last_epoch), len(ends) - 1)
        start, (end, lr_from, lr_to, momentum_from, momentum_to) = ends[i - 1] if i else 0.0, self.phases[i]
        done = (self.last_epoch - start) / (end - start) if end != start else 1.0
        if self.anneal_strategy == "cos":
            done = (1 - cos(pi * done)) / 2
        for group in self.optimizer.param_groups if self.cycle_momentum else ():
            momentum = group[momentum_from] + (group[momentum_to] - group[momentum_from]) * done
            group.update({"betas": (momentum, *group["betas"][1:])} if "betas" in group else {"momentum": momentum})
        return [group[lr_from] + (group[lr_to] - group[lr_from]) * done for group in self.optimizer.param_groups]


class CyclicLR(LRScheduler):
    """lr(t) = base_lr + (max_lr - base_lr) · s · h(t), where h rises from 0 to 1, falls to 0, and repeats: triangles.

    h rises in step_size_up steps and falls in step_size_down steps, by default as many. c = 1, 2, .. is the number of
    the cycle, and s = 1 (mode "triangular"), 1 / 2^(c - 1) ("triangular2") or gammaᵗ ("exp_range"). The momentum (β₁ of
    Adam) is max_momentum - (max_momentum - base_momentum) · s · h(t).  Smith 2015, arXiv:1506.01186.

    Args:
        base_lr, max_lr: a number, or one for each group; likewise the momenta.
        scale_fn: s as a function of c, or with scale_mode="iterations" of t; replaces `mode`.
        cycle_momentum: False: the momentum is constant.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        step_size_up: int = 2000,
        step_size_down: int | None = None,
        mode: str = "triangular",
        gamma: float = 1.0,
        scale_fn: Callable[[float], float] | None = None,
        scale_mode: str = "cycle",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        if mode not in ("triangular", "triangular2", "exp_range") and scale_fn is None:
            raise ValueError(f'CyclicLR: mode is "triangular", "triangular2" or "exp_range", got {mode!r}')
        if cycle_momentum and not {"momentum", "betas"} & set(optimizer.defaults):
            raise ValueError("CyclicLR: this optimizer has no momentum: give cycle_momentum=False")
        self.step_size_up, self.step_size_down = (
            step_size_up,
            step_size_up if step_size_down is None else step_size_down,
        )
        self.mode, self.gamma, self.custom_scale_fn, self.cycle_momentum = mode, gamma, scale_fn, cycle_momentum
        self.scale_mode = scale_mode if scale_fn else "iterations" if mode == "exp_range" else "cycle"
        base_lrs, self.max_lrs, self.base_momentums, self.max_momentums = (
            _of_each_group(value, name, "CyclicLR", optimizer)
            for name, value in (
                ("base_lr", base_lr),
                ("max_lr", max_lr),
                ("base_momentum", base_momentum),
                ("max_momentum", max_momentum),
            )
        )
        if last_epoch == -1:
            for group, lr in zip(optimizer.param_groups, base_lrs, strict=True):
                group["lr"] = lr
        super().__init__(optimizer, last_epoch)
        self.base_lrs = base_lrs

    def scale_fn(self, x: float) -> float:
        """s, as a function of c or t."""
        if self.custom_scale_fn is not None:
            return self.custom_scale_fn(x)
        if self.mode == "exp_range":
            return self.gamma**x
        return 1.0 if self.mode == "triangular" else 0.5 ** (x - 1)

    def get_lr(self) -> list[float]:
        """The learning rates of step t. Sets the momenta."""
        cycle, done = divmod(self.last_epoch, self.step_size_up + self.step_size_down)
        up = done <= self.step_size_up
        h = done / self.step_size_up if up else 1 - (done - self.step_size_up) / self.step_size_down
        h *= self.scale_fn(1 + cycle if self.scale_mode == "cycle" else self.last_epoch)
        momenta = zip(self.optimizer.param_groups, self.base_momentums, self.max_momentums, strict=True)
        for group, low, high in momenta if self.cycle_momentum else ():
            momentum = high - (high - low) * h
            group.update({"betas": (momentum, *group["betas"][1:])} if "betas" in group else {"momentum": momentum})
        return [low + (high - low) * h for low, high in zip(self.base_lrs, self.max_lrs, strict=True)]


class _Schedulers(LRScheduler):
    """A scheduler of schedulers: its state contains theirs."""

    schedulers: list[Any]

    def state_dict(self) -> dict[str, Any]:
        """The attributes, and the state of each scheduler."""
        own = {name: x for name, x in super().state_dict().items() if name != "schedulers"}
        return {**own, "schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a `state_dict`."""
        for scheduler, state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        super().load_state_dict({name: x for name, x in state_dict.items() if name != "schedulers"})


class ChainedScheduler(_Schedulers):
    """Several schedulers at once: `step` calls the `step` of each, so that their factors multiply."""

    def __init__(self, schedulers: Sequence[Any], optimizer: Optimizer | None = None) -> None:
        if not schedulers or any(isinstance(scheduler, ReduceLROnPlateau) for scheduler in schedulers):
            raise ValueError("ChainedScheduler: needs schedulers, none of them ReduceLROnPlateau, which needs a metric")
        self.optimizer, self.schedulers = optimizer or schedulers[0].optimizer, list(schedulers)
        if any(scheduler.optimizer is not self.optimizer for scheduler in schedulers):
            raise ValueError("ChainedScheduler: all schedulers must be of one optimizer")
        self._last_lr = self.current()

    def step(self) -> None:
        for scheduler in self.schedulers:
            scheduler.step()
        self._last_lr = self.current()


class SequentialLR(_Schedulers):
    """Several schedulers, one after another: scheduler i runs from milestone i - 1 on, with its own t from 0."""

    def __init__(
        self, optimizer: Optimizer, schedulers: Sequence[Any], milestones: Sequence[int], last_epoch: int = -1
    ) -> None:
        if len(milestones) != len(schedulers) - 1 or not schedulers:
            raise ValueError(
                f"SequentialLR: needs one milestone less than schedulers, got {len(milestones)} for {len(schedulers)}"
            )
        if any(scheduler.optimizer is not optimizer for scheduler in schedulers):
            raise ValueError("SequentialLR: all schedulers must be of the given optimizer")
        self.optimizer, self.schedulers, self.milestones = optimizer, list(schedulers), list(milestones)
        self.last_epoch = last_epoch + 1
        self.schedulers[0].restart()
        self._last_lr = self.schedulers[0].get_last_lr()

    def step(self) -> None:
        self.last_epoch += 1
        i = bisect_right(self.milestones, self.last_epoch)
        if i and self.milestones[i - 1] == self.last_epoch:
            self.schedulers[i].restart()
        else:
            self.schedulers[i].step()
        self._last_lr = self.schedulers[i].get_last_lr()


class ReduceLROnPlateau(LRScheduler):
    """Multiply the learning rate by `factor` after more than `patience` epochs without a better metric.

    Args:
        mode: "min": smaller metrics are better; "max": larger.
        threshold, threshold_mode: a metric must be better by threshold, relative to the best ("rel"), or "abs".
        cooldown: the number of epochs after a reduction in which no epoch counts as bad.
        min_lr: the lower bound of the learning rate, a number, or one for each group.
        eps: smaller changes of the learning rate are not made.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0.0,
        eps: float = 1e-8,
    ) -> None:
        if not factor < 1:
            raise ValueError(f"ReduceLROnPlateau: factor must be below 1, got {factor}")
        if mode not in ("min", "max") or threshold_mode not in ("rel", "abs"):
            raise ValueError(f'ReduceLROnPlateau: mode is "min" or "max", threshold_mode "rel" or "abs", got {mode!r}')
        self.optimizer, self.mode, self.factor, self.patience = optimizer, mode, factor, patience
        self.threshold, self.threshold_mode, self.cooldown, self.eps = threshold, threshold_mode, cooldown, eps
        self.min_lrs = _of_each_group(min_lr, "min_lr", "ReduceLROnPlateau", optimizer)
        self.best = inf if mode == "min" else -inf
        self.num_bad_epochs = self.cooldown_counter = self.last_epoch = 0
        self._last_lr = self.current()

    def step(self, metrics: Any) -> None:  # type: ignore[override]
        """Compare the metric of an epoch with the best, and reduce the learning rates if the patience is exceeded."""
        metric, self.last_epoch = float(metrics), self.last_epoch + 1
        if self._is_better(metric):
            self.best, self.num_bad_epochs = metric, 0
        else:
            self.num_bad_epochs += 1
        if self.cooldown_counter > 0:
            self.cooldown_counter, self.num_bad_epochs = self.cooldown_counter - 1, 0
        rates = self.current()
        if self.num_bad_epochs > self.patience:
            smaller = [max(lr * self.factor, low) for lr, low in zip(rates, self.min_lrs, strict=True)]
            rates = [new if lr - new > self.eps else lr for lr, new in zip(rates, smaller, strict=True)]
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self._set(rates)

    def _is_better(self, metric: float) -> bool:
        sign = 1 if self.mode == "max" else -1
        margin = sign * self.threshold
        limit = self.best * (1 + margin) if self.threshold_mode == "rel" else self.best + margin
        return metric > limit if self.mode == "max" else metric < limit


def _positive(steps: float, name: str, scheduler: str) -> None:
    if not steps > 0:
        raise ValueError(f"{scheduler}: {name} must be above 0, got {steps}")
