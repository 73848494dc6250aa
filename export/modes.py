"""``self.training`` in a model's own forward: symbolic tracing sees only the value that it has then, so a model is traced in both modes.

Where only a flag differs (``functional.dropout(x, 0.5, self.training)``), the call becomes a module that follows its own mode. Where the
operations differ, the modules that ask for the mode are kept whole.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from torch import fx, nn

from wire.errors import GraphError

__all__ = ["ByMode", "asks_for_mode", "held", "traced_in_both"]

T = TypeVar("T")


class ByMode(nn.Module):
    """A function some of whose arguments follow the mode: ``flags`` has (in training, in evaluation) by position or name."""

    def __init__(self, function: Callable[..., Any], flags: Mapping[int | str, tuple[bool, bool]]) -> None:
        super().__init__()
        self._function, self._flags = function, dict(flags)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        given = list(args)
        for key, (training, evaluation) in self._flags.items():
            value = training if self.training else evaluation
            if isinstance(key, int):
                given[key] = value
            else:
                kwargs[key] = value
        return self._function(*given, **kwargs)


def asks_for_mode(module: nn.Module) -> bool:
    """Whether the module's own forward reads ``training``."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    return code is not None and "training" in code.co_names


def traced_in_both(model: nn.Module, trace: Callable[[bool], tuple[T, fx.Graph]]) -> tuple[T, fx.Graph, dict[str, nn.Module]]:
    """``trace(closed)`` traces the model in the mode that it is in; ``closed``: with modules that ask for their mode as leaves.

    Returns the training graph, where nodes that follow the mode are calls of modules that the model lacks: these, by name. The model's mode
    is left as it was. Raises GraphError where the two differ in more than can be kept apart.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        for closed in (False, True):
            model.train()
            tracer, graph = trace(closed)
            model.eval()
            _, other = trace(closed)
            flags = _differing(graph, other)
            if flags is not None:
                return tracer, graph, _follow(graph, flags)
    finally:
        for module, mode in modes.items():
            module.training = mode
    raise GraphError(
        "the model's forward does other things in training than in evaluation (it branches on `self.training`); put what depends on it "
        "into a submodule of its own"
    )


def _differing(training: fx.Graph, evaluation: fx.Graph) -> dict[fx.Node, dict[int | str, tuple[bool, bool]]] | None:
    """The flags that differ, by the training graph's nodes; None where more does."""
    ones, others = list(training.nodes), list(evaluation.nodes)
    if len(ones) != len(others):
        return None
    found: dict[fx.Node, dict[int | str, tuple[Any, Any]]] = {}
    places = {node: at for row in (ones, others) for at, node in enumerate(row)}
    for one, other in zip(ones, others, strict=True):
        constants = one.op == other.op == "get_attr" and all(str(each.target).startswith("_tensor_constant") for each in (one, other))
        if one.op != other.op or (one.target != other.target and not constants):
            return None
        theirs = _arguments(other, places)
        pairs = {key: (value, theirs.get(key)) for key, value in _arguments(one, places).items()}
        changed = {key: pair for key, pair in pairs.items() if repr(pair[0]) != repr(pair[1])}
        if changed and (one.op != "call_function" or not all(isinstance(each, bool) for pair in changed.values() for each in pair)):
            return None
        if changed:
            found[one] = changed
    return found


def _arguments(node: fx.Node, places: Mapping[fx.Node, int]) -> dict[int | str, Any]:
    """By position or name; another node by its place, for constants are called otherwise each time."""
    found: dict[int | str, Any] = dict(enumerate(node.args)) | dict(node.kwargs)
    return {key: fx.node.map_arg(value, lambda each: f"%{places[each]}") for key, value in found.items()}


def _follow(graph: fx.Graph, flags: Mapping[fx.Node, Mapping[int | str, tuple[bool, bool]]]) -> dict[str, nn.Module]:
    modules: dict[str, nn.Module] = {}
    for node, changed in flags.items():
        assert callable(node.target)
        name = f"by_mode_{len(modules)}"
        modules[name] = ByMode(node.target, changed)
        node.op, node.target = "call_module", name
    return modules


@contextlib.contextmanager
def held(model: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """The model has these submodules meanwhile. Raises GraphError where it has one of that name."""
    for name in modules:
        if hasattr(model, name):
            raise GraphError(f"the model has an attribute `{name}`, a name that cutting needs itself; call it otherwise")
    try:
        for name, module in modules.items():
            model.add_module(name, module)
        yield
    finally:
        for name in modules:
            delattr(model, name)
