"""What a schedule asks of the rest of a run file, where weights are averaged or clients hold the whole network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from wire.graph import Graph
from wire.optim import SGD
from wire.program import FEDERATED
from wire.tally import check_counted

if TYPE_CHECKING:
    from wire.runfile import Run

__all__ = ["check_copies", "check_network", "check_relay", "check_rounds", "check_weights_leave"]


def check_network(run: Run) -> None:
    """Whether there is one network, cut or whole as the schedule wants it. Raises ValueError, or RunFileError for metrics."""
    if run.schedule not in FEDERATED:
        if (run.model is None) is (not run.segments):
            raise ValueError("the run file needs `[model]` with its cuts, or `[[segments]]`, and not both")
        if run.model is not None and not run.model.cut:
            raise ValueError("`model.cut` is empty; name the submodule after which the network is cut")
        return
    if run.model is None or run.segments:
        raise ValueError(f"`schedule` {run.schedule!r} trains one whole network on each client: write `[model]`, and no `[[segments]]`")
    labels = any(server.labels is not None for server in run.all_servers)
    surplus = {"model.cut": run.model.cut, "model.placement": run.model.placement, "server.labels": labels}
    surplus |= {"align": run.align is not None, "reconstruct": run.reconstruct is not None}
    for key, value in surplus.items():
        if value:
            raise ValueError(f"`schedule` {run.schedule!r} trains the whole network with its loss on each client: leave out `{key}`")
    check_counted(run.evaluate.metrics, loss=run.loss)


def check_rounds(run: Run) -> None:
    """Raises ValueError for rounds that the schedule does not have, or that do not keep what it promises."""
    if run.round_steps is not None and not run.averages:
        raise ValueError(f"`round_steps` means nothing with `schedule` {run.schedule!r}, which averages nothing; leave it out")
    if run.round_steps is not None and run.round_steps < 1:
        raise ValueError(f"`round_steps` is {run.round_steps}; it must be 1 or more")
    if run.schedule == "large-batch" and run.round_steps not in (None, 1):
        raise ValueError(f"`round_steps` is {run.round_steps}; with `schedule` 'large-batch' a round is one step: leave it out")
    if run.schedule == "large-batch" and (not isinstance(run.optimizer, SGD) or run.clip_norm is not None):
        raise ValueError(
            "`schedule` 'large-batch' is a step on the mean gradient, which an average of weights is with `optimizer.kind` 'sgd' and "
            "without `clip_norm` only; use those, or 'fedavg' with `round_steps = 1`"
        )


def check_copies(run: Run, graph: Graph) -> None:
    """Raises ValueError where "splitfed-v1" would keep copies on a party that cannot average them."""
    if run.schedule != "splitfed-v1" or graph.lanes == 1:
        return
    for segment in graph.segments:
        if len(segment.parties) == 1 and segment.parties[0] != graph.root():
            raise ValueError(
                f"`schedule` is 'splitfed-v1', and segment `{segment.name}` is on {segment.parties[0]}: copies are averaged on "
                f"{graph.root()} alone, which coordinates the run; place it there, or use 'splitfed-v2'"
            )


def check_relay(run: Run, graph: Graph) -> None:
    """Raises ValueError where a relay could not hand the weights of every replicated segment from lane to lane."""
    replicated = [segment for segment in graph.segments if len(segment.parties) > 1]
    if run.schedule != "relay" or not replicated:
        return
    first, rest = replicated[0], replicated[1:]
    for segment in rest:
        crossed = set(segment.parties) & set(first.parties)
        if segment.parties != first.parties and (crossed or run.hand_over == "peer"):
            raise ValueError(
                f"`schedule` is 'relay', and segment `{segment.name}` is on {', '.join(segment.parties)}, `{first.name}` on "
                f"{', '.join(first.parties)}; weights go on from party to party: place both on the same ones, in the same order"
                + (', or use `hand_over = "server"`' if run.hand_over == "peer" and not crossed else "")
            )


def check_weights_leave(run: Run) -> None:
    """Raises ValueError where weights would go to the server and may not."""
    if run.lanes == 1 or run.weights_leave:
        return
    if run.schedule == "relay" and run.hand_over == "server":
        raise ValueError(
            "`schedule` is 'relay' with several clients, which hands segment weights from one to the next through the server; allow it "
            'with `weights_leave = true`, hand them on sealed with `hand_over = "peer"`, or use `schedule = "independent"`'
        )
    if run.averages:
        raise ValueError(
            f"`schedule` is {run.schedule!r} with several clients, which averages the clients' weights; "
            'allow it with `weights_leave = true`, or use `schedule = "independent"`'
        )
