"""Traces a whole model into a graph of operations that can be cut, with the sizes of everything known while its ``forward`` runs.

``torch.fx`` alone knows no values, so ``x.shape`` and ``len(x)`` are riddles to it. Here every operation also runs on tensors without data,
at several batch sizes. A number that is equal at all of them is a number, so that ``forward`` may compute with sizes, branch on them and
loop over them; one that follows the batch size stays an operation of the graph. What depends on the values of tensors is refused.
"""

from __future__ import annotations

import contextlib
import functools
import operator
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call

from export.fit import BATCHES
from export.modes import asks_for_mode
from export.ops import Affine
from wire.errors import GraphError

__all__ = ["TracedModel", "traced"]

# Functions that take sizes and no tensor: a size may follow the batch. Those that draw are operations always, and never run while tracing.
_FROM_SIZES = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros")
_DRAWING = ("bernoulli", "multinomial", "normal", "rand", "randint", "randn", "randperm")
_METHODS_FROM_SIZES = ("broadcast_to", "expand", "new_empty", "new_full", "new_ones", "new_zeros", "repeat", "reshape", "tile", "view")
_INTO_NUMBERS = ("item", "tolist", "numpy", "__array__")
_PLAIN = (int, float, str, torch.dtype, torch.device, torch.layout, type(None))


@dataclass(frozen=True, slots=True)
class TracedModel:
    """``calls``: how often each submodule runs. ``numbers``: operations that give a number which follows the batch size.

    ``tuples``: operations that give several tensors. ``shapes``: those that give a shape, of which only such numbers are read.
    """

    graph: fx.Graph
    calls: Mapping[str, int]
    numbers: Mapping[fx.Node, Affine]
    tuples: frozenset[fx.Node]
    shapes: frozenset[fx.Node]

    def size(self, node: fx.Node) -> bool:
        """Whether the node gives what any segment can tell from the batch size of what arrives."""
        return node in self.numbers or node in self.shapes


@contextlib.contextmanager
def traced(model: nn.Module, examples: Sequence[Tensor], opened: Sequence[str], *, closed: bool = False) -> Iterator[TracedModel]:
    """``examples``: the model's inputs, batch first; only their shapes and dtypes count. ``opened``: submodules that must be seen.
    ``closed``: submodules whose own forward asks for the mode are kept whole.

    While it lasts, constants that ``forward`` makes are attributes of the model; then the model is as it was. Raises GraphError.
    """
    before = set(vars(model))
    try:
        yield _traced(model, examples, opened, closed)
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)


def _traced(model: nn.Module, examples: Sequence[Tensor], opened: Sequence[str], closed: bool) -> TracedModel:
    tracer = _Tracer(examples, opened, closed)
    try:
        with _sizes_allowed(tracer):
            graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError, AttributeError, ValueError, IndexError, KeyError) as exc:
        raise GraphError(_reason(exc, examples)) from exc
    numbers = {node: found for node, values in tracer.values.items() if (found := _affine(values)) is not None}
    tuples = frozenset(node for node, values in tracer.values.items() if isinstance(values[0], (tuple, list)))
    shapes = frozenset(node for node, values in tracer.values.items() if isinstance(values[0], torch.Size))
    return TracedModel(graph, tracer.calls, numbers, tuples - shapes, shapes)


def _reason(exc: Exception, examples: Sequence[Tensor]) -> str:
    text = str(exc).strip().splitlines()[0][:200] if str(exc).strip() else type(exc).__name__
    if isinstance(exc, fx.proxy.TraceError):
        return f"the model cannot be traced ({text}); its forward must not branch on tensor values: put that part into a module of its own"
    shapes = ", ".join(str(list(each.shape)) for each in examples)
    return f"the model does not run on inputs of shape {shapes}: {text}"


def _affine(values: Sequence[Any]) -> Affine | None:
    if not all(type(value) is int for value in values):
        return None
    slope, rest = divmod(values[1] - values[0], BATCHES[1] - BATCHES[0])
    found = Affine(slope, values[0] - slope * BATCHES[0])
    return found if not rest and all(found.at(batch) == value for batch, value in zip(BATCHES, values, strict=True)) else None


# ------------------------------------------------------------ values while tracing


class _Proxy(fx.Proxy):
    """Stands for a tensor, a tuple of them, or a number that follows the batch size."""

    tracer: _Tracer

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.values_of(self.node)[0]
        if isinstance(value, Tensor) and name in _INTO_NUMBERS:
            raise fx.proxy.TraceError(f"`.{name}` takes values out of a tensor")
        if hasattr(value, name) and not callable(getattr(value, name)):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return super().__getattr__(name)

    def __len__(self) -> int:
        return self.tracer.length(self)

    def __iter__(self) -> Iterator[Any]:
        return iter([_item(self, at) for at in range(self.tracer.length(self))])

    def __setitem__(self, at: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, at, value), {})

    def __index__(self) -> int:
        raise fx.proxy.TraceError("it counts up to the batch size, or makes a number of a tensor")

    __int__ = __index__

    def __float__(self) -> float:
        raise fx.proxy.TraceError("it makes a number of a tensor, or of the batch size")


def _item(proxy: Any, at: int) -> Any:
    return proxy[at]


class _Shape(tuple[Any, ...]):
    """``x.shape``, of numbers and of proxies for numbers."""

    def numel(self) -> Any:
        return functools.reduce(lambda left, right: left * right, self, 1)

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Shape(found) if isinstance(at, slice) else found


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True  # what is computed from a buffer is computed in the graph, and the buffer stays state

    def __init__(self, examples: Sequence[Tensor], opened: Sequence[str], closed: bool) -> None:
        super().__init__()
        self._closed = closed
        self._opened = opened
        self.calls: Counter[str] = Counter()
        self.values: dict[fx.Node, tuple[Any, ...]] = {}
        self._examples = list(examples)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.running = False
        self._gradients = torch.is_grad_enabled()
        self._inputs = 0

    # fx's own hooks, which also see what a module does while it runs for its values.

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self.running:
            return forward(*args, **kwargs)
        self.calls[self.path_of_module(m)] += 1
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        return attr_val if self.running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._closed and asks_for_mode(m):
            return True
        inside = any(name.startswith(f"{module_qualified_name}.") for name in self._opened)
        return super().is_leaf_module(m, module_qualified_name) and not inside

    def to_bool(self, obj: fx.Proxy) -> bool:
        truths = {bool(value) for value in self.values_of(obj.node) if not isinstance(value, Tensor)}
        if len(truths) == 1:
            return truths.pop()
        if truths:
            raise fx.proxy.TraceError("it branches on the batch size")
        raise fx.proxy.TraceError("symbolically traced variables cannot be used as inputs to control flow")

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter(obj)

    def _proxy_placeholder(self, name: str, concrete_args: Any, sig: Any, fn_for_analysis: Any) -> Any:
        """Arguments for which there is no example keep their defaults."""
        if name.startswith("*"):
            return {} if name.startswith("**") else ()
        self._inputs += 1
        if self._inputs > len(self._examples) and name in sig.parameters and sig.parameters[name].default is not sig.empty:
            return sig.parameters[name].default
        return super()._proxy_placeholder(name, concrete_args, sig, fn_for_analysis)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        if kind in ("call_function", "call_method", "call_module") and self._gradients and not torch.is_grad_enabled():
            raise fx.proxy.TraceError("it uses torch.no_grad(); use .detach()")
        options.pop("proxy_factory_fn", None)
        found = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if kind == "output":
            return found
        self.values[found.node] = values = tuple(self._value(found.node, at) for at in range(len(BATCHES)))
        if isinstance(values[0], torch.Size):
            return self._shape(found, values)
        writes = values[0] is None and target is not getattr  # like `x[:, 0] = 1`
        if kind != "placeholder" and not writes and isinstance(values[0], _PLAIN) and all(value == values[0] for value in values):
            self._forget(found.node)
            return values[0]
        return found

    def _shape(self, found: fx.Proxy, values: Sequence[torch.Size]) -> _Shape:
        sizes = [row[0] if len(set(row)) == 1 else _item(found, at) for at, row in enumerate(zip(*values, strict=True))]
        if not any(isinstance(size, fx.Proxy) for size in sizes):
            self._forget(found.node)
        return _Shape(sizes)

    def _forget(self, node: fx.Node) -> None:
        del self.values[node]
        self.graph.erase_node(node)

    # ------------------------------------------------------------ values

    def values_of(self, node: fx.Node) -> tuple[Any, ...]:
        if node not in self.values:  # fx makes nodes of constants without asking for a proxy
            self.values[node] = tuple(self._value(node, at) for at in range(len(BATCHES)))
        return self.values[node]

    def length(self, proxy: fx.Proxy) -> int:
        values = self.values_of(proxy.node)
        lengths = {len(value) if not isinstance(value, int) else -1 for value in values}
        if len(lengths) != 1:
            raise fx.proxy.TraceError("it goes through the samples of a batch one by one")
        return lengths.pop()

    def _value(self, node: fx.Node, at: int) -> Any:
        """What the node gives at the batch size ``BATCHES[at]``; tensors without data."""
        if node.op == "placeholder":
            return self._input(str(node.target), at)
        args: Any = fx.node.map_arg(node.args, lambda old: self.values_of(old)[at])
        kwargs: Any = fx.node.map_arg(node.kwargs, lambda old: self.values_of(old)[at])
        before, self.running = self.running, True
        try:
            with torch.no_grad(), self._fake:
                return self._run(node, args, kwargs)
        finally:
            self.running = before

    def _run(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        if node.op == "get_attr":
            found: Any = functools.reduce(getattr, str(node.target).split("."), self.root)
            return self._fake.from_tensor(found) if isinstance(found, Tensor) else found
        if node.op == "call_module":
            module = self.root.get_submodule(str(node.target))
            # On a state of its own, or BatchNorm would count these batches.
            tensors = (*module.named_parameters(), *module.named_buffers())
            state: dict[str, Tensor] = {name: self._fake.from_tensor(value) for name, value in tensors}
            return functional_call(module, state, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return node.target(*args, **kwargs)  # type: ignore[operator]

    def _input(self, name: str, at: int) -> Tensor:
        place = sum(node.op == "placeholder" for node in self.values)
        if place >= len(self._examples):
            raise TypeError(f"it takes `{name}` beside them")
        example = self._examples[place]
        with self._fake:
            return torch.empty((BATCHES[at], *example.shape[1:]), dtype=example.dtype)


@contextlib.contextmanager
def _sizes_allowed(tracer: _Tracer) -> Iterator[None]:
    """While it lasts, ``torch.zeros(x.size(0), 3)``, ``constant.expand(x.size(0), -1)`` and their like are operations of the graph."""

    def wrapped(call: Callable[..., Any], kind: str, target: Any, *, always: bool = False) -> Callable[..., Any]:
        @functools.wraps(call)
        def run(*args: Any, **kwargs: Any) -> Any:
            if not tracer.running and (always or _has_proxy((args, tuple(kwargs.values())))):
                return tracer.create_proxy(kind, target, args, kwargs)
            return call(*args, **kwargs)

        return run

    kept = {name: getattr(torch, name) for name in (*_FROM_SIZES, *_DRAWING)}
    for name, call in kept.items():
        setattr(torch, name, wrapped(call, "call_function", call, always=name in _DRAWING))
    for name in _METHODS_FROM_SIZES:  # Tensor inherits them
        setattr(Tensor, name, wrapped(getattr(Tensor, name), "call_method", name))
    try:
        yield
    finally:
        for name, call in kept.items():
            setattr(torch, name, call)
        for name in _METHODS_FROM_SIZES:
            delattr(Tensor, name)


def _has_proxy(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_proxy(each) for each in value)
    return isinstance(value, fx.Proxy)
