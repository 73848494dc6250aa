"""Cuts a model after named submodules into segments.

The model is traced symbolically (``export.symbolic``). Everything that runs up to the last operation of a named submodule is one
segment; every tensor that is made before a cut and read after it crosses, so a skip connection over a cut is one more named tensor.
Parameters keep their names: the segments' state dicts together are the model's.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from export.modes import held, traced_in_both
from export.ops import Affine
from export.symbolic import TracedModel, traced
from wire.errors import GraphError

__all__ = ["Piece", "cut", "identifier"]

_SHOWN_NAMES = 24
_RESERVED = ("target", "loss")


@dataclass(frozen=True, slots=True)
class Piece:
    """One segment. ``output_names`` that the next segment reads are among its ``input_names``; ``examples`` are its inputs."""

    module: fx.GraphModule
    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    examples: tuple[Tensor, ...]


def cut(model: nn.Module, at: str | Sequence[str], example_inputs: Sequence[Tensor]) -> tuple[Piece, ...]:
    """Split ``model`` after each submodule named in ``at`` (in the order in which they run) into ``len(at) + 1`` segments.

    The model's modules are shared with the segments, not copied. Raises GraphError: a name that does not exist (those that do are listed),
    that never runs, or runs more than once; names in the wrong order; weights shared across a cut; raw input that would cross; a model that
    cannot be traced.
    """
    names = (at,) if isinstance(at, str) else tuple(at)
    for name in names:
        _check_name(model, name)
    with contextlib.ExitStack() as stack:

        def trace(closed: bool) -> tuple[TracedModel, fx.Graph]:
            seen = stack.enter_context(traced(model, example_inputs, names, closed=closed))
            return seen, seen.graph

        found, _, modules = traced_in_both(model, trace)
        stack.enter_context(held(model, modules))
        stages = _stages(found, _ends(found, names))
        pieces = _build(model, found, stages, len(names) + 1)
    _check_shared(pieces, names)
    return _with_examples(pieces, tuple(example_inputs))


# ------------------------------------------------------------ where the cuts are


def _check_name(model: nn.Module, name: str) -> None:
    known = [each for each, _ in model.named_modules() if each]
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    shown = ", ".join(known[:_SHOWN_NAMES]) + (f" and {len(known) - _SHOWN_NAMES} more" if len(known) > _SHOWN_NAMES else "")
    raise GraphError(
        f"the model has no submodule `{name}` to cut after{hint} It has {shown}"
        if hint
        else f"the model has no submodule `{name}` to cut after; it has {shown}"
    )


def _ends(model: TracedModel, names: Sequence[str]) -> list[int]:
    """For each name, the position of its last operation."""
    found = []
    for name in names:
        calls = model.calls.get(name, 0)
        if calls != 1:
            often = "never runs" if calls == 0 else f"runs {calls} times, with the same weights"
            raise GraphError(f"cannot cut after `{name}`: it {often}; name a submodule that runs once")
        positions = [at for at, node in enumerate(model.graph.nodes) if name in _modules_of(node)]
        if not positions:
            raise GraphError(f"cannot cut after `{name}`: nothing is computed in it; name the submodule before it")
        found.append(positions[-1])
    if found != sorted(set(found)):
        raise GraphError(f"the cuts {', '.join(names)} are not in the order in which the model runs them")
    return found


def _modules_of(node: fx.Node) -> list[str]:
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack", {})
    return [*(str(entry[0]) for entry in stack.values()), *([str(node.target)] if node.op == "call_module" else [])]


def _stages(model: TracedModel, ends: Sequence[int]) -> dict[fx.Node, int]:
    """Which segment each operation runs in. A part of a tuple goes to where the tuple is made."""
    graph = model.graph
    stages = {node: sum(at > end for end in ends) for at, node in enumerate(graph.nodes)}
    last = len(ends)
    for node in graph.nodes:
        if node.target is operator.getitem and node.args[0] in model.tuples:
            stages[node] = stages[node.args[0]]
    if all(node.op in ("output", "placeholder") for node in graph.nodes if stages[node] == last):
        raise GraphError("nothing is left behind the last cut; cut earlier")
    return stages


# ------------------------------------------------------------ building


def _build(model: nn.Module, found: TracedModel, stages: Mapping[fx.Node, int], count: int) -> list[Piece]:
    pieces, graph = [], found.graph
    fixed = _fixed(graph)

    def anywhere(node: fx.Node) -> bool:
        return node in fixed or found.size(node)

    arriving = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output")
    for stage in range(count):
        mine = [node for node in graph.nodes if stages[node] == stage and node.op not in ("placeholder", "output") and not anywhere(node)]
        leaving = [] if stage == count - 1 else _crossing(graph, stages, stage, anywhere)
        pieces.append(_piece(model, found.numbers, mine, arriving, leaving, output if stage == count - 1 else None))
        arriving = leaving
    return pieces


def _fixed(graph: fx.Graph) -> set[fx.Node]:
    """Weights, buffers, constants, and what is computed from them alone: each segment that reads it computes it."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        writes = str(node.target).endswith("_") or node.target is operator.setitem
        computed = node.op in ("call_function", "call_method") and not writes and node.all_input_nodes
        if node.op == "get_attr" or (computed and found.issuperset(node.all_input_nodes)):
            found.add(node)
    return found


def _crossing(graph: fx.Graph, stages: Mapping[fx.Node, int], stage: int, anywhere: Callable[[fx.Node], bool]) -> list[fx.Node]:
    """What is made up to ``stage`` and read after it. What any segment can make itself does not cross, like the batch size."""
    found = []
    for node in graph.nodes:
        if node.op == "output" or anywhere(node):
            continue
        made = 0 if node.op == "placeholder" else stages[node]
        if made <= stage and any(stages[user] > stage and not anywhere(user) for user in node.users):
            if node.op == "placeholder":
                raise GraphError(f"the raw input `{node.target}` is read behind the cut and would have to cross it; cut later")
            found.append(node)
    return found


def _piece(
    model: nn.Module,
    numbers: Mapping[fx.Node, Affine],
    nodes: Sequence[fx.Node],
    arriving: Sequence[fx.Node],
    leaving: Sequence[fx.Node],
    output: fx.Node | None,
) -> Piece:
    graph = fx.Graph()
    names = {node: identifier(node.name) for node in (*arriving, *leaving)}
    copies: dict[fx.Node, fx.Node] = {node: graph.placeholder(names[node]) for node in arriving}

    def copied(old: fx.Node) -> fx.Node:
        if old not in copies and old in numbers:
            copies[old] = _number(graph, next(iter(copies.values())), numbers[old])
        elif old not in copies:  # computed from weights and constants alone
            copies[old] = graph.node_copy(old, copied)
        return copies[old]

    for node in nodes:
        copies[node] = graph.node_copy(node, copied)
    if output is None:
        graph.output(tuple(copies[node] for node in leaving) if len(leaving) > 1 else copies[leaving[0]])
        outputs = tuple(names[node] for node in leaving)
    else:
        found: Any = output.args[0]
        results = tuple(found.values()) if isinstance(found, dict) else found if isinstance(found, (tuple, list)) else (found,)
        graph.output(fx.node.map_arg(results if isinstance(found, dict) else found, copied))
        outputs = ("y",) if len(results) == 1 else tuple(f"y{at}" for at in range(len(results)))
    graph.lint()
    return Piece(_module(model, graph), tuple(names[node] for node in arriving), outputs, ())


def _number(graph: fx.Graph, tensor: fx.Node, number: Affine) -> fx.Node:
    """The number from the batch size of a tensor that arrives."""
    found = graph.call_method("size", (tensor, 0))
    found = found if number.slope == 1 else graph.call_function(operator.mul, (found, number.slope))
    return found if number.offset == 0 else graph.call_function(operator.add, (found, number.offset))


class _Constant(nn.Module):
    """A tensor that is no state: ``GraphModule`` would make a buffer of it."""

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.value = value

    def forward(self) -> Tensor:
        return self.value


def _held(model: nn.Module, graph: fx.Graph) -> dict[str, nn.Module]:
    """Modules of the segment's own, by name: constants."""
    state = {name for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))}
    found: dict[str, nn.Module] = {}
    for node in list(graph.nodes):
        made: nn.Module | None = None
        if node.op == "get_attr" and node.target not in state and isinstance(value := _attribute(model, node.target), Tensor):
            made = _Constant(value.detach())
        if made is not None:
            node.op, node.target = "call_module", f"_held{len(found)}"
            found[node.target] = made
    return found


def _attribute(model: nn.Module, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), model)


def _module(model: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The segment, with the model's own modules, parameters and buffers under their names."""
    held = _held(model, graph)
    reached = [node.target for node in graph.nodes if node.op in ("get_attr", "call_module") and node.target not in held]
    found = fx.GraphModule({**held, **{path: _attribute(model, path) for path in reached}}, graph)
    found.training = model.training
    kept = model.state_dict(keep_vars=True)
    for name, _ in found.named_buffers():
        if name not in kept:
            path, _, key = name.rpartition(".")
            found.get_submodule(path)._non_persistent_buffers_set.add(key)
    return found


def identifier(name: str) -> str:
    """``name`` as a tensor that crosses a cut may be called."""
    cleaned = re.sub(r"[^A-Za-z0-9_]", "_", name)
    return f"{cleaned}_" if cleaned in _RESERVED else cleaned


def _check_shared(pieces: Sequence[Piece], names: Sequence[str]) -> None:
    seen: dict[int, tuple[int, str]] = {}
    for stage, piece in enumerate(pieces):
        for name, value in (*piece.module.named_parameters(remove_duplicate=False), *piece.module.named_buffers(remove_duplicate=False)):
            before = seen.setdefault(id(value), (stage, name))
            if before[0] != stage:
                raise GraphError(
                    f"`{before[1]}` and `{name}` are one tensor on both sides of the cut after `{names[stage - 1]}`; weights shared "
                    "across a cut cannot be trained: cut elsewhere or untie them"
                )


def _with_examples(pieces: Sequence[Piece], examples: tuple[Tensor, ...]) -> tuple[Piece, ...]:
    """Run the segments one after the other, to know what crosses. Raises GraphError where the model does not fit the inputs."""
    found = []
    for piece in pieces:
        found.append(Piece(piece.module, piece.input_names, piece.output_names, examples))
        flags = {module: module.training for module in piece.module.modules()}
        try:
            with torch.no_grad():
                result = piece.module.eval()(*examples)
        except (RuntimeError, TypeError, ValueError, IndexError) as exc:
            shapes = ", ".join(str(list(each.shape)) for each in examples)
            raise GraphError(f"the model does not run on inputs of shape {shapes}: {str(exc).splitlines()[0][:200]}") from exc
        finally:
            for module, flag in flags.items():
                module.training = flag
        examples = (result,) if isinstance(result, Tensor) else tuple(result)
        for name, value in zip(piece.output_names, examples, strict=True):
            if not isinstance(value, Tensor):
                raise GraphError(f"`{name}` crosses the cut but is no tensor (it is a {type(value).__name__}); compute it on one side only")
    return tuple(found)
