"""detect_anomaly and observers."""

import threading

import numpy as np
import pytest

import minigrad
from minigrad import Tensor, nn
from minigrad.autograd import anomaly, grad_mode
from minigrad.autograd.anomaly import NonFiniteError
from tests.autograd.test_tape import leaf


class TestDetectAnomaly:
    def test_names_the_op_the_shapes_and_the_module(self):
        model = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Linear(3, 4)))
        model[1][0].weight.data[0, 0] = np.inf
        with minigrad.detect_anomaly(), pytest.raises(NonFiniteError) as caught:
            model(Tensor(np.ones((5, 2), np.float32)))
        message = str(caught.value)
        assert "Linear (in 1.0)" in message and "(5, 4)" in message and "input 1 was already not finite" in message

    def test_names_the_first_non_finite_backward(self):
        x = leaf(0.0, 1.0)
        with minigrad.detect_anomaly(), np.errstate(all="ignore"):  # noqa: SIM117
            with pytest.raises(NonFiniteError, match=r"Sqrt\.backward computed 0 NaN and 1 Inf"):
                x.sqrt().sum().backward()

    def test_is_off_by_default_and_outside_its_block(self):
        with minigrad.detect_anomaly():
            pass
        with np.errstate(all="ignore"):
            assert np.isinf((leaf(1.0) / 0.0).item())

    def test_a_finite_model_passes(self):
        model = nn.Linear(2, 3)
        with minigrad.detect_anomaly():
            model(Tensor(np.ones((5, 2), np.float32))).sum().backward()
        np.testing.assert_array_equal(model.weight.grad.numpy(), np.full((3, 2), 5))


class TestObserver:
    class Log(anomaly.Observer):
        def __init__(self) -> None:
            super().__init__()
            self.seen: list[tuple[str, str, str, tuple[int, ...]]] = []

        def forward(self, node, arrays, output):
            self.seen.append(("forward", node.op_name, self.module_path(), output.shape))

        def backward(self, node, grad_output, results):
            self.seen.append(("backward", node.op_name, self.module_path(), grad_output.shape))

    def test_is_called_for_every_op_with_its_module(self):
        model, diary = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU())), self.Log()
        with anomaly.observing(diary):
            model(Tensor(np.ones((5, 2), np.float32))).sum().backward()
        assert diary.seen == [
            ("forward", "Linear", "0", (5, 3)),
            ("forward", "ReLU", "1.0", (5, 3)),
            ("forward", "Sum", "", ()),
            ("backward", "Sum", "", ()),
            ("backward", "ReLU", "", (5, 3)),
            ("backward", "Linear", "", (5, 3)),
        ]
        assert diary.path == []

    def test_only_the_innermost_observer_is_called(self):
        outer, inner, x = self.Log(), self.Log(), leaf(1.0)
        with anomaly.observing(outer):
            with pytest.raises(ValueError, match="broadcast"), anomaly.observing(inner):
                leaf(1.0, 2.0) + leaf(1.0, 2.0, 3.0)
            with anomaly.observing(inner):
                x + 1
            x * 2
        x / 2
        assert [entry[1] for entry in inner.seen] == ["Add"] and [entry[1] for entry in outer.seen] == ["Mul"]
        assert grad_mode.open_blocks == 0 and grad_mode.mode.observer is None

    def test_is_called_only_for_its_own_thread(self):
        diary = self.Log()
        with anomaly.observing(diary):
            thread = threading.Thread(target=lambda: leaf(1.0) + 1)
            thread.start()
            thread.join()
        assert diary.seen == []
