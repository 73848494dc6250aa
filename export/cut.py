"""Cuts a model after named submodules into segments.

The model is traced symbolically (``torch.fx``), with PyTorch's own layers as leaves. Everything that runs up to the last operation of a
named submodule is one segment; every tensor that is made before a cut and read after it crosses, so a skip connection over a cut is one
more named tensor. Parameters keep their names: the segments' state dicts together are the model's.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from export.modes import asks_for_mode, held, traced_in_both
from wire.errors import GraphError

__all__ = ["Piece", "cut"]

_SHOWN_NAMES = 24
_RESERVED = ("target", "loss")
# Make tensors of sizes, which tracing does not know: `torch.zeros(1, x.shape[0], 64)` for the first state of an LSTM.
_FACTORIES = (torch.zeros, torch.ones, torch.full, torch.empty, torch.arange, torch.rand, torch.randn)
_SEVERAL_RESULTS = (nn.RNNBase, nn.LSTMCell, nn.MultiheadAttention)


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
    tracer, graph, modules = traced_in_both(model, functools.partial(_traced, model))
    ends = _ends(tracer, graph, names)
    stages = _stages(model, graph, ends)
    with held(model, modules):
        pieces = _build(model, graph, stages, len(names) + 1)
    _check_shared(pieces, names)
    return _with_examples(pieces, tuple(example_inputs))


# ------------------------------------------------------------ tracing


class _Tracer(fx.Tracer):
    """Counts how often each submodule is called. A ``TransformerEncoder`` is opened, so that it can be cut between its layers."""

    def __init__(self, *, closed: bool) -> None:
        super().__init__(autowrap_functions=_FACTORIES)
        self._autowrap_search.append(torch)  # where the functions are looked for: a forward calls them as torch.zeros
        self._closed = closed
        self.calls: Counter[str] = Counter()

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        self.calls[self.path_of_module(m)] += 1
        if isinstance(m, nn.TransformerEncoder):
            if len(args) > 2 or kwargs.get("src_key_padding_mask") is not None:
                return self.create_proxy("call_module", self.path_of_module(m), args, kwargs)
            forward = functools.partial(_through_layers, m)
        return super().call_module(m, forward, args, kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if self._closed and asks_for_mode(m):
            return True
        return super().is_leaf_module(m, module_qualified_name) and not isinstance(m, nn.TransformerEncoder)


def _through_layers(encoder: nn.TransformerEncoder, src: Any, mask: Any = None, is_causal: bool | None = None, **_: None) -> Any:
    """What an encoder computes without padding. Its own forward looks at shapes, which tracing does not know."""
    for layer in encoder.layers:
        src = layer(src, src_mask=mask, is_causal=bool(is_causal) and mask is not None)
    return src if encoder.norm is None else encoder.norm(src)


def _traced(model: nn.Module, closed: bool) -> tuple[_Tracer, fx.Graph]:
    tracer = _Tracer(closed=closed)
    try:
        graph = tracer.trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, NotImplementedError, AttributeError, ValueError) as exc:
        reason = str(exc).strip().splitlines()[0][:200] if str(exc).strip() else type(exc).__name__
        raise GraphError(
            f"the model cannot be traced ({reason}); its forward must not branch on tensor values: put that part into a module of its own"
        ) from exc
    for node in graph.nodes:
        node.meta.pop("is_wrapped", None)  # or each trace from then on would look for a global called `torch.zeros`
    return tracer, graph


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


def _ends(tracer: _Tracer, graph: fx.Graph, names: Sequence[str]) -> list[int]:
    """For each name, the position of its last operation."""
    found = []
    for name in names:
        calls = tracer.calls[name]
        if calls != 1:
            often = "never runs" if calls == 0 else f"runs {calls} times, with the same weights"
            raise GraphError(f"cannot cut after `{name}`: it {often}; name a submodule that runs once")
        positions = [at for at, node in enumerate(graph.nodes) if name in _modules_of(node)]
        if not positions:
            raise GraphError(f"cannot cut after `{name}`: nothing is computed in it; name the submodule before it")
        found.append(positions[-1])
    if found != sorted(set(found)):
        raise GraphError(f"the cuts {', '.join(names)} are not in the order in which the model runs them")
    return found


def _modules_of(node: fx.Node) -> list[str]:
    stack: Mapping[str, Any] = node.meta.get("nn_module_stack", {})
    return [*(str(entry[0]) for entry in stack.values()), *([str(node.target)] if node.op == "call_module" else [])]


def _stages(model: nn.Module, graph: fx.Graph, ends: Sequence[int]) -> dict[fx.Node, int]:
    """Which segment each operation runs in. A constant goes to where it is first read, a part of several results to where they are made."""
    stages = {node: sum(at > end for end in ends) for at, node in enumerate(graph.nodes)}
    last = len(ends)
    for node in graph.nodes:
        if node.op == "get_attr":
            stages[node] = min((stages[user] for user in node.users), default=last)
        elif _is_result(model, node):
            stages[node] = stages[node.args[0]]
    if all(node.op in ("output", "placeholder") for node in graph.nodes if stages[node] == last):
        raise GraphError("nothing is left behind the last cut; cut earlier")
    return stages


def _is_result(model: nn.Module, node: fx.Node) -> bool:
    """Whether the node takes one of the results of a layer that gives several (an LSTM its sequence, its states, and one of these)."""
    if node.target is not operator.getitem or not isinstance(node.args[0], fx.Node):
        return False
    source = node.args[0]
    if source.op == "call_module":
        return isinstance(model.get_submodule(str(source.target)), _SEVERAL_RESULTS)
    within = source.args[0] if source.target is operator.getitem else None
    return isinstance(within, fx.Node) and within.op == "call_module" and isinstance(model.get_submodule(str(within.target)), nn.LSTM)


# ------------------------------------------------------------ building


def _build(model: nn.Module, graph: fx.Graph, stages: Mapping[fx.Node, int], count: int) -> list[Piece]:
    pieces = []
    arriving = [node for node in graph.nodes if node.op == "placeholder"]
    output = next(node for node in graph.nodes if node.op == "output")
    for stage in range(count):
        mine = [node for node in graph.nodes if stages[node] == stage and node.op not in ("placeholder", "output")]
        leaving = [] if stage == count - 1 else _crossing(graph, stages, stage)
        pieces.append(_piece(model, mine, arriving, leaving, output if stage == count - 1 else None))
        arriving = leaving
    return pieces


def _crossing(graph: fx.Graph, stages: Mapping[fx.Node, int], stage: int) -> list[fx.Node]:
    """What is made up to ``stage`` and read after it."""
    found = []
    for node in graph.nodes:
        if node.op in ("output", "get_attr"):
            continue
        made = 0 if node.op == "placeholder" else stages[node]
        if made <= stage and any(stages[user] > stage for user in node.users):
            if node.op == "placeholder":
                raise GraphError(f"the raw input `{node.target}` is read behind the cut and would have to cross it; cut later")
            found.append(node)
    return found


def _piece(
    model: nn.Module, nodes: Sequence[fx.Node], arriving: Sequence[fx.Node], leaving: Sequence[fx.Node], output: fx.Node | None
) -> Piece:
    graph = fx.Graph()
    names = {node: _identifier(node.name) for node in (*arriving, *leaving)}
    copies: dict[fx.Node, fx.Node] = {node: graph.placeholder(names[node]) for node in arriving}
    for node in nodes:
        copies[node] = graph.node_copy(node, lambda old: copies[old])
    if output is None:
        graph.output(tuple(copies[node] for node in leaving) if len(leaving) > 1 else copies[leaving[0]])
        outputs = tuple(names[node] for node in leaving)
    else:
        graph.output(fx.node.map_arg(output.args[0], lambda old: copies[old]))
        results = output.args[0] if isinstance(output.args[0], (tuple, list)) else (output.args[0],)
        outputs = ("y",) if len(results) == 1 else tuple(f"y{at}" for at in range(len(results)))
    graph.lint()
    return Piece(fx.GraphModule(model, graph), tuple(names[node] for node in arriving), outputs, ())


def _identifier(name: str) -> str:
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
