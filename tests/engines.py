"""What every engine promises in ``wire.engine.Engine``, as tests that each implementation inherits, with PyTorch as the oracle."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from wire.engine import Engine
from wire.errors import CheckpointError
from wire.optim import SGD, Adam, AdamW, Optimizer
from wire.store import dump_state, load_state

__all__ = ["CASES", "OPTIMIZERS", "Array", "Case", "EngineContract", "Reference", "outputs_of"]

Array = NDArray[Any]

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(lr=0.1),
    "sgd nesterov": SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": Adam(lr=0.01, weight_decay=0.1),
    "adamw": AdamW(lr=0.01, betas=(0.8, 0.99)),
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": functional.cross_entropy,
    "bce": lambda out, target: functional.binary_cross_entropy_with_logits(out.reshape(target.shape), target),
    "mse": lambda out, target: functional.mse_loss(out.reshape(target.shape), target),
}


class _Forked(nn.Module):
    """Two inputs, two outputs, a frozen layer and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 5, bias=False), nn.Linear(3, 5)
        self.norm, self.frozen = nn.BatchNorm1d(5), nn.Linear(5, 2)
        self.frozen.requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        mixed = torch.tanh(self.norm(self.left(a))) * self.right(b)
        return mixed, self.frozen(mixed)


@dataclass(frozen=True)
class Case:
    """A network, the shapes of a sample's inputs and of its target, and for which inputs a gradient is asked."""

    build: Callable[[], nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    gradients: tuple[bool, ...]
    outputs: tuple[tuple[int, ...], ...]
    loss: Any = None

    def net(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            return self.build()

    def inputs(self, seed: int, batch: int) -> tuple[Array, ...]:
        random = np.random.default_rng(seed)
        found = tuple(random.standard_normal((batch, *shape)).astype(np.float32) for shape in self.shapes)
        if self.loss is None:
            return found
        target: Array = random.standard_normal(batch).astype(np.float32)
        if self.loss == "cross_entropy":
            target = random.integers(0, 3, batch)
        elif self.loss == "bce":
            target = random.integers(0, 2, batch).astype(np.float32)
        return (*found, target)

    def grads(self, seed: int, batch: int) -> tuple[Array, ...]:
        if self.loss is not None:
            return ()
        random = np.random.default_rng(seed + 1000)
        return tuple(random.standard_normal((batch, *shape)).astype(np.float32) for shape in self.outputs)


def _dense(outputs: int) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(4, 6, bias=False), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, outputs))


def _conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 3))


CASES: dict[str, Case] = {
    "dense": Case(_dense(3), ((4,),), (True,), ((3,),)),
    "conv": Case(_conv, ((1, 6, 6),), (False,), ((3,),)),
    "plain": Case(lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)), ((4,),), (True,), ((3,),)),
    "forked": Case(_Forked, ((4,), (3,)), (True, False), ((5,), (2,))),
    "cross_entropy": Case(_dense(3), ((4,),), (True,), ((),), "cross_entropy"),
    "bce": Case(_dense(1), ((4,),), (True,), ((),), "bce"),
    "mse": Case(_dense(1), ((4,),), (True,), ((),), "mse"),
}


def outputs_of(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else tuple(found)


class Reference:
    """The same segment in plain PyTorch. A step's gradient is of the weights that its forward has seen; its update is of today's."""

    def __init__(self, case: Case, optimizer: Optimizer, clip_norm: float | None = None) -> None:
        self._case, self._clip_norm = case, clip_norm
        self.module = copy.deepcopy(case.net()).train()
        self._trained = {name: value for name, value in self.module.named_parameters() if value.requires_grad}
        values, options = list(self._trained.values()), {"lr": optimizer.lr, "weight_decay": optimizer.weight_decay}
        if isinstance(optimizer, SGD):
            self._optimizer: torch.optim.Optimizer = torch.optim.SGD(
                values, momentum=optimizer.momentum, nesterov=optimizer.nesterov, **options
            )
        else:
            kind = torch.optim.AdamW if isinstance(optimizer, AdamW) else torch.optim.Adam
            self._optimizer = kind(values, betas=optimizer.betas, eps=optimizer.eps, **options)
        self._base_lr = optimizer.lr
        self._kept: dict[int, tuple[list[Tensor], tuple[Tensor, ...], tuple[Tensor, ...]]] = {}

    def forward(self, step: int, *inputs: Array) -> tuple[Array, ...]:
        tensors = tuple(torch.from_numpy(array.copy()) for array in inputs)
        for tensor, asked in zip(tensors, self._case.gradients, strict=False):
            tensor.requires_grad_(asked)
        seen = {name: value.detach().clone().requires_grad_() for name, value in self._trained.items()}
        given = tensors if self._case.loss is None else tensors[:-1]
        outputs = outputs_of(functional_call(self.module, seen, given))
        if self._case.loss is not None:
            outputs = (LOSSES[self._case.loss](outputs[0], tensors[-1]),)
        self._kept[step] = (list(seen.values()), tensors, outputs)
        return tuple(output.detach().numpy().copy() for output in outputs)

    def backward(self, step: int, *grads: Array, lr: float | None = None) -> tuple[Array | None, ...]:
        seen, inputs, outputs = self._kept.pop(step)
        wanted = [tensor for tensor in inputs if tensor.requires_grad]
        into = [torch.from_numpy(grad.copy()) for grad in grads] if grads else None
        found = [grad.clone() for grad in torch.autograd.grad(outputs, [*seen, *wanted], into)]
        for value, grad in zip(self._trained.values(), found, strict=False):
            value.grad = grad
        if self._clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trained.values(), self._clip_norm)
        self._optimizer.param_groups[0]["lr"] = self._base_lr if lr is None else lr
        self._optimizer.step()
        rest = iter(found[len(seen) :])
        return tuple(next(rest).numpy() if tensor.requires_grad else None for tensor in inputs)

    def infer(self, *inputs: Array) -> tuple[Array, ...]:
        with torch.no_grad():
            found = outputs_of(self.module.eval()(*(torch.from_numpy(array) for array in inputs)))
        self.module.train()
        return tuple(output.numpy() for output in found)

    def parameters(self) -> dict[str, Array]:
        return {name: value.detach().numpy().copy() for name, value in self.module.state_dict().items()}


class EngineContract(ABC):
    """Inherit it, and say how an engine is made."""

    tolerance = 1e-4  # 0: bit for bit

    @abstractmethod
    def open(self, case: str, optimizer: str, clip_norm: float | None = None, accumulate: int = 1) -> Engine:
        """A new engine with the case's initial weights."""

    # ------------------------------------------------------------ comparing

    def same(self, found: Sequence[Array | None], wanted: Sequence[Array | None], what: str) -> None:
        assert [each is None for each in found] == [each is None for each in wanted], what
        for one, other in zip(found, wanted, strict=True):
            if one is not None and other is not None:
                assert (one.dtype, one.shape) == (other.dtype, other.shape), what
                np.testing.assert_allclose(one, other, rtol=self.tolerance, atol=self.tolerance, err_msg=what)

    def same_weights(self, engine: Engine, reference: Reference, what: str) -> None:
        found, wanted = engine.parameters(), reference.parameters()
        assert set(found) == set(wanted)
        self.same([found[name] for name in wanted], list(wanted.values()), what)

    @staticmethod
    def train(engine: Engine, case: Case, seeds: Sequence[int], batch: int = 5) -> list[Array | None]:
        """A step a seed; everything that came out."""
        found: list[Array | None] = []
        for seed in seeds:
            found += engine.forward(seed, *case.inputs(seed, batch))
            found += engine.backward(seed, *case.grads(seed, batch))
        return found

    @staticmethod
    def unchanged(engine: Engine, before: Mapping[str, Array]) -> None:
        identical(engine.state(), before)

    # ------------------------------------------------------------ training

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("name", ["dense", "conv", "forked"])
    def test_it_trains_as_torch_does(self, name: str, optimizer: str) -> None:
        """With partial batches in between, and with a learning rate of the step's own or none."""
        case, engine = CASES[name], self.open(name, optimizer)
        reference = Reference(case, OPTIMIZERS[optimizer])
        for step, (batch, lr) in enumerate([(6, None), (4, 0.02), (5, None), (6, 0.001), (4, 0.03)]):
            inputs, grads = case.inputs(step, batch), case.grads(step, batch)
            self.same(engine.forward(step, *inputs), reference.forward(step, *inputs), f"outputs of step {step}")
            self.same(engine.backward(step, *grads, lr=lr), reference.backward(step, *grads, lr=lr), f"input gradients of step {step}")
            self.same_weights(engine, reference, f"weights after step {step}")
        inputs = case.inputs(99, 7)
        self.same(engine.infer(*inputs), reference.infer(*inputs), "inference")

    @pytest.mark.parametrize("name", ["cross_entropy", "bce", "mse"])
    def test_a_segment_with_its_loss_trains_as_torch_does(self, name: str) -> None:
        case, engine = CASES[name], self.open(name, "sgd nesterov")
        reference = Reference(case, OPTIMIZERS["sgd nesterov"])
        assert engine.inputs[-1].name == "target"
        assert [spec.name for spec in engine.outputs] == ["loss"]
        for step, batch in enumerate([6, 4, 5]):
            inputs = case.inputs(step, batch)
            (loss,) = engine.forward(step, *inputs)
            assert loss.shape == ()
            self.same([loss], reference.forward(step, *inputs), f"loss of step {step}")
            found, none = engine.backward(step)
            assert none is None, "a target has no gradient"
            self.same([found, none], reference.backward(step), f"input gradient of step {step}")
            self.same_weights(engine, reference, f"weights after step {step}")
        inputs = case.inputs(99, 7)[:-1]
        self.same(engine.infer(*inputs), reference.infer(*inputs), "inference takes no target and returns the network's output")

    @given(data=st.data())
    @settings(max_examples=25, suppress_health_check=[HealthCheck.differing_executors])
    def test_steps_in_flight_come_back_in_any_order(self, data: st.DataObject) -> None:
        """Each one's gradient is of the weights that its own forward has seen. Neither a kink nor a batch of two: they magnify rounding."""
        name, optimizer = data.draw(st.sampled_from([("dense", "sgd nesterov"), ("dense", "adam"), ("forked", "sgd")]))
        case, engine, reference = CASES[name], self.open(name, optimizer), Reference(CASES[name], OPTIMIZERS[optimizer])
        waiting: list[tuple[int, int]] = []
        for step in range(8):
            while waiting and (len(waiting) > 3 or data.draw(st.booleans())):
                self._return(engine, reference, case, waiting.pop(data.draw(st.integers(0, len(waiting) - 1))))
            batch = data.draw(st.integers(4, 6))
            inputs = case.inputs(step, batch)
            self.same(engine.forward(step, *inputs), reference.forward(step, *inputs), f"outputs of step {step}")
            waiting.append((step, batch))
        for each in data.draw(st.permutations(waiting)):
            self._return(engine, reference, case, each)
        assert engine.state(), "nothing is in flight any more"

    def _return(self, engine: Engine, reference: Reference, case: Case, waiting: tuple[int, int]) -> None:
        step, batch = waiting
        grads = case.grads(step, batch)
        self.same(engine.backward(step, *grads), reference.backward(step, *grads), f"input gradients of step {step}")
        self.same_weights(engine, reference, f"weights after step {step}")

    @pytest.mark.parametrize("clip_norm", [0.05, 1.0, 1e6])
    def test_gradients_are_clipped_as_torch_does(self, clip_norm: float) -> None:
        case, engine = CASES["forked"], self.open("forked", "sgd", clip_norm)
        reference, plain = Reference(case, OPTIMIZERS["sgd"], clip_norm), Reference(case, OPTIMIZERS["sgd"])
        for step in range(3):
            inputs, grads = case.inputs(step, 5), case.grads(step, 5)
            for each in (engine, reference, plain):
                each.forward(step, *inputs)
            found, wanted = engine.backward(step, *grads), reference.backward(step, *grads)
            plain.backward(step, *grads)
            clipped, free = (each.parameters()["right.weight"] for each in (reference, plain))
            assert np.allclose(clipped, free, rtol=1e-3) is (clip_norm == 1e6), "the reference is no test of clipping"
            np.testing.assert_allclose(
                np.array(found[0]), np.array(wanted[0]), rtol=1e-4, atol=1e-6, err_msg="input gradients are not clipped"
            )
            for name, value in reference.parameters().items():
                np.testing.assert_allclose(engine.parameters()[name], value, rtol=1e-4, atol=1e-6, err_msg=f"{name} after step {step}")

    @pytest.mark.parametrize("clip_norm", [None, 0.5])
    def test_accumulated_gradients_are_those_of_one_large_batch(self, clip_norm: float | None) -> None:
        case = CASES["plain"]
        small, large = self.open("plain", "sgd nesterov", clip_norm, accumulate=3), self.open("plain", "sgd nesterov", clip_norm)
        for update in range(3):
            steps = [3 * update + at for at in range(3)]
            inputs, grads = [case.inputs(step, 4) for step in steps], [case.grads(step, 4) for step in steps]
            for at, step in enumerate(steps):
                before = small.parameters()
                small.forward(step, *inputs[at])
                small.backward(step, *grads[at])
                if at == 1:  # a checkpoint in the middle carries the sums
                    state, small = small.state(), self.open("plain", "sgd nesterov", clip_norm, accumulate=3)
                    small.load_state(load_state(dump_state(state), where="here"))
                if at < 2:
                    identical(small.parameters(), before)
            large.forward(update, *(np.concatenate(each) for each in zip(*inputs, strict=True)))
            large.backward(update, *(np.concatenate(each) / np.float32(3) for each in zip(*grads, strict=True)))
            for name, value in large.parameters().items():
                np.testing.assert_allclose(small.parameters()[name], value, rtol=1e-4, atol=1e-6, err_msg=f"{name} after {update}")

    def test_a_sum_of_gradients_that_overflows_is_refused_and_changes_nothing(self) -> None:
        case, engine = CASES["plain"], self.open("plain", "sgd", accumulate=3)
        before = engine.parameters()
        large = np.array([[2.5e38, 0, 0]], np.float32)  # the gradient of the last bias is this itself
        inputs = [tuple(array * np.float32(0.01) for array in case.inputs(step, 1)) for step in range(2)]
        engine.forward(0, *inputs[0])
        engine.backward(0, large)
        engine.forward(1, *inputs[1])
        with pytest.raises(FloatingPointError):
            engine.backward(1, large)
        state = engine.state()
        assert int(state["a.count"]) == 1
        assert all(np.isfinite(value).all() for value in state.values())
        identical(engine.parameters(), before)

    def test_the_gradient_of_an_output_that_nobody_read_is_zero(self) -> None:
        case = CASES["forked"]
        one, other = self.open("forked", "sgd"), self.open("forked", "sgd")
        for engine in (one, other):
            engine.forward(0, *case.inputs(0, 4))
        first, _ = case.grads(0, 4)
        self.same(one.backward(0, first, None), other.backward(0, first, np.zeros((4, 2), np.float32)), "input gradients")
        identical(one.state(), other.state())

    def test_gradients_of_inputs_are_there_where_they_are_asked_for(self) -> None:
        for name in ("dense", "conv", "forked"):
            case, engine = CASES[name], self.open(name, "sgd")
            assert tuple(spec.gradient for spec in engine.inputs) == case.gradients
            inputs = case.inputs(0, 4)
            engine.forward(0, *inputs)
            found = engine.backward(0, *case.grads(0, 4))
            assert [None if each is None else each.shape for each in found] == [
                array.shape if asked else None for array, asked in zip(inputs, case.gradients, strict=True)
            ]

    def test_a_frozen_parameter_is_not_trained(self) -> None:
        engine = self.open("forked", "adamw")
        before = engine.parameters()
        self.train(engine, CASES["forked"], range(3))
        after = engine.parameters()
        changed = {name for name in before if not np.array_equal(before[name], after[name])}
        assert changed == set(before) - {"frozen.weight", "frozen.bias"}

    # ------------------------------------------------------------ steps

    @pytest.mark.parametrize("name", ["dense", "conv", "forked"])
    def test_discarding_the_newest_forward_leaves_no_trace(self, name: str) -> None:
        case, engine, other = CASES[name], self.open(name, "adam"), self.open(name, "adam")
        self.train(engine, case, [0])
        before = engine.state()
        engine.forward(1, *case.inputs(77, 6))
        engine.discard(1)
        self.unchanged(engine, before)
        self.train(engine, case, [1, 2])
        self.train(other, case, [0, 1, 2])
        identical(engine.state(), other.state())

    def test_discarding_an_older_forward_keeps_what_newer_ones_left_in_the_buffers(self) -> None:
        case, engine, reference = CASES["dense"], self.open("dense", "sgd"), Reference(CASES["dense"], OPTIMIZERS["sgd"])
        for step in range(2):
            for each in (engine, reference):
                each.forward(step, *case.inputs(step, 5))
        engine.discard(0)
        self.same_weights(engine, reference, "buffers after two forwards")
        grads = case.grads(1, 5)
        self.same(engine.backward(1, *grads), reference.backward(1, *grads), "the other step's gradients")
        self.same_weights(engine, reference, "weights after the other step")
        with pytest.raises(KeyError):
            engine.backward(0, *case.grads(0, 5))

    def test_discarding_a_step_that_is_not_in_flight_does_nothing(self) -> None:
        case, engine = CASES["dense"], self.open("dense", "sgd")
        self.train(engine, case, [0])
        before = engine.state()
        for step in (0, 1, -5):
            engine.discard(step)
        self.unchanged(engine, before)

    def test_a_step_is_in_flight_once(self) -> None:
        case, engine, other = CASES["dense"], self.open("dense", "sgd"), self.open("dense", "sgd")
        engine.forward(4, *case.inputs(4, 5))
        with pytest.raises(ValueError, match="step 4 is in flight already"):
            engine.forward(4, *case.inputs(5, 5))
        engine.backward(4, *case.grads(4, 5))
        self.train(other, case, [4])
        identical(engine.state(), other.state())

    def test_a_step_that_is_not_in_flight_has_no_backward(self) -> None:
        case, engine = CASES["dense"], self.open("dense", "sgd")
        self.train(engine, case, [0])
        before = engine.state()
        for step in (0, 1):
            with pytest.raises(KeyError):
                engine.backward(step, *case.grads(0, 5))
        self.unchanged(engine, before)

    @pytest.mark.parametrize(("rows", "bad"), [(1, np.nan), (1, np.inf), (1, -np.inf), (5, 3e38)])
    @pytest.mark.parametrize("name", ["dense", "conv"])
    def test_a_gradient_that_is_not_finite_changes_nothing(self, name: str, rows: int, bad: float) -> None:
        """3e38 is finite itself; the sum of five is not."""
        case, engine = CASES[name], self.open(name, "adam")
        self.train(engine, case, [0])
        before = engine.state()
        engine.forward(1, *case.inputs(1, 5))
        (grad,) = case.grads(1, 5)
        grad[:rows] = bad
        with pytest.raises(FloatingPointError, match="is not finite"):
            engine.backward(1, grad)
        self.unchanged(engine, before)
        with pytest.raises(KeyError):
            engine.backward(1, *case.grads(1, 5))

    def test_a_bad_gradient_of_one_step_leaves_the_others_alone(self) -> None:
        case, engine, reference = CASES["conv"], self.open("conv", "adam"), Reference(CASES["conv"], OPTIMIZERS["adam"])
        for step in range(3):
            for each in (engine, reference):
                each.forward(step, *case.inputs(step, 4))
        with pytest.raises(FloatingPointError):
            engine.backward(1, np.full((4, 3), np.nan, np.float32))
        for step in (2, 0):
            for each in (engine, reference):
                each.backward(step, *case.grads(step, 4))
        self.same_weights(engine, reference, "after the other two")

    # ------------------------------------------------------------ arrays

    def test_what_was_returned_is_not_changed_by_later_steps(self) -> None:
        for name in ("dense", "conv", "forked"):
            case, engine = CASES[name], self.open(name, "sgd nesterov")
            kept = [each for each in self.train(engine, case, range(4)) if each is not None]
            kept += [*engine.infer(*case.inputs(50, 5)), *engine.parameters().values(), *engine.state().values()]
            copies = [each.copy() for each in kept]
            self.train(engine, case, range(4, 10))
            engine.infer(*case.inputs(51, 5))
            for one, other in zip(kept, copies, strict=True):
                np.testing.assert_array_equal(one, other)

    def test_writing_into_copies_changes_no_weights(self) -> None:
        case, engine = CASES["forked"], self.open("forked", "adam")
        self.train(engine, case, [0])
        before = engine.state()
        found = engine.state()
        engine.load_state(found)
        for array in (*engine.parameters().values(), *found.values()):
            array[...] = 7
        self.unchanged(engine, before)

    def test_inference_is_evaluation_and_leaves_no_trace(self) -> None:
        """Running statistics, so that a sample's answer does not depend on the others of its batch."""
        case, engine = CASES["dense"], self.open("dense", "sgd")
        self.train(engine, case, range(3))
        before = engine.state()
        (inputs,) = case.inputs(9, 6)
        (together,) = engine.infer(inputs)
        alone = np.concatenate([engine.infer(inputs[at : at + 1])[0] for at in range(6)])
        np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-6)
        engine.forward(3, *case.inputs(3, 5))
        engine.infer(inputs)
        engine.discard(3)
        self.unchanged(engine, before)

    # ------------------------------------------------------------ state

    @pytest.mark.parametrize("optimizer", OPTIMIZERS)
    @pytest.mark.parametrize("name", ["dense", "forked", "cross_entropy"])
    def test_a_loaded_state_goes_on_bit_for_bit(self, name: str, optimizer: str) -> None:
        """Over the file format of checkpoints."""
        case, engine, other = CASES[name], self.open(name, optimizer), self.open(name, optimizer)
        self.train(engine, case, range(3))
        state = load_state(dump_state(engine.state()), where="memory")
        self.train(other, case, range(50, 54))
        other.load_state(state)
        identical(other.state(), engine.state())
        for one, two in zip(self.train(engine, case, range(3, 7)), self.train(other, case, range(3, 7)), strict=True):
            assert (one is None) == (two is None)
            assert one is None or two is None or one.tobytes() == two.tobytes()
        identical(other.state(), engine.state())

    def test_a_state_names_weights_buffers_and_slots(self) -> None:
        engine = self.open("forked", "adam")
        trained = {"left.weight", "right.weight", "right.bias", "norm.weight", "norm.bias"}
        buffers = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
        assert set(engine.state()) == (
            {f"p.{name}" for name in trained | {"frozen.weight", "frozen.bias"}}
            | {f"b.{name}" for name in buffers}
            | {f"s.{slot}.{name}" for slot in ("exp_avg", "exp_avg_sq") for name in trained}
            | {"s.step"}
        )
        assert not [name for name in self.open("forked", "sgd").state() if name.startswith("s.")]
        assert engine.state()["s.step"] == 0
        self.train(engine, CASES["forked"], range(3))
        assert engine.state()["s.step"] == 3

    def test_a_state_is_taken_between_steps(self) -> None:
        case, engine = CASES["dense"], self.open("dense", "sgd")
        engine.forward(3, *case.inputs(3, 5))
        with pytest.raises(RuntimeError, match=r"steps \[3\] are in flight"):
            engine.state()

    def test_loading_a_state_drops_what_is_in_flight(self) -> None:
        case, engine = CASES["dense"], self.open("dense", "sgd")
        self.train(engine, case, [0])
        before = engine.state()
        for step in (1, 2):
            engine.forward(step, *case.inputs(step, 5))
        engine.load_state(before)
        self.unchanged(engine, before)
        with pytest.raises(KeyError):
            engine.backward(1, *case.grads(1, 5))
        self.train(engine, case, [1])

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            (lambda state: state.pop("p.0.weight"), r"`p\.0\.weight` is missing from the state"),
            (lambda state: state.pop("b.1.running_var"), r"`b\.1\.running_var` is missing from the state"),
            (lambda state: state.pop("s.exp_avg.3.bias"), r"`s\.exp_avg\.3\.bias` is missing from the state"),
            (lambda state: state.pop("s.step"), r"`s\.step` is missing from the state"),
            (lambda state: state.update({"p.9.weight": np.zeros(1, np.float32)}), r"`p\.9\.weight` is surplus in the state"),
            (lambda state: state.update({"s.momentum.3.bias": np.zeros(3, np.float32)}), r"`s\.momentum\.3\.bias` is surplus in the state"),
            (lambda state: state.update({"p.3.bias": np.zeros(4, np.float32)}), r"`p\.3\.bias`.*\[3\].*\[4\]"),
            (lambda state: state.update({"p.3.bias": np.zeros((3, 1), np.float32)}), r"`p\.3\.bias`.*\[3\].*\[3, 1\]"),
            (lambda state: state.update({"s.exp_avg.3.bias": np.zeros(1, np.float32)}), r"`s\.exp_avg\.3\.bias`.*\[3\].*\[1\]"),
        ],
    )
    def test_the_state_of_another_network_is_refused_and_changes_nothing(
        self, change: Callable[[dict[str, Array]], object], said: str
    ) -> None:
        case, engine, donor = CASES["dense"], self.open("dense", "adam"), self.open("dense", "adam")
        self.train(engine, case, range(2))
        self.train(donor, case, range(10, 13))
        before, state = engine.state(), donor.state()
        change(state)
        with pytest.raises(CheckpointError, match=said) as caught:
            engine.load_state(state)
        assert "of another network" in str(caught.value)
        assert "\n" not in str(caught.value)
        self.unchanged(engine, before)


def identical(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> None:
    """Bit for bit."""
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        assert (found[name].dtype, found[name].shape) == (value.dtype, value.shape), name
        assert found[name].tobytes() == value.tobytes(), f"{name}: {found[name]} is not {value}"
