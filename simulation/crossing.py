"""What a training step's tensors become on the line of a run with one client and one cut: both ends' codecs, frames and PUBLISH packets."""

from __future__ import annotations

from collections.abc import Mapping

from export.run_segment import RunSegment
from server.engine import TorchEngine
from wire.cut import Cuts
from wire.engine import Array, Engine
from wire.frames import Frame, Kind, Mode, encode
from wire.messages import Work
from wire.runfile import Run
from wire.transport.window import publish_bytes

__all__ = ["Crossing", "engine_for", "packets_of"]


def engine_for(run: Run, segment: RunSegment) -> TorchEngine:
    """Trains the segment as the run says; the segment's own weights are left as they are."""
    return TorchEngine(
        segment.module,
        inputs=segment.inputs,
        outputs=segment.outputs,
        optimizer=run.optimizer,
        loss=segment.loss,
        clip_norm=run.clip_norm,
        accumulate=run.accumulate,
        seed=run.seed,
        segment=segment.name,
    )


def packets_of(run: Run, frame: Frame, *, part_bytes: int | None = None, alias: bool = False) -> tuple[int, ...]:
    """Sizes of the PUBLISH packets of a message of the run's first client, over MQTT 5.

    ``part_bytes``: of one payload at most; left out, the run file's. ``alias``: the topic is a number, as where the broker grants aliases
    and after the first packet; otherwise it is spelled out.
    """
    (line,) = run.graph().slice_for(run.clients[0].name).lines
    topic, _ = run.topics(line)
    topic_bytes, properties_bytes = (0, 4) if alias else (len(topic), 1)
    parts = encode(frame, run_tag=run.tag, part_bytes=part_bytes or run.broker.part_bytes)
    return tuple(publish_bytes(topic_bytes, len(part), properties_bytes=properties_bytes) for part in parts)


class Crossing:
    """The cut of a run that has one, at both of its ends, with the encoders of both. ``engines``, by segment: what they take and give is
    all that is read of them.

    A step's ``forward`` comes before its ``backward``. ``alias``: the client's broker grants topic aliases for what goes up.
    Raises RunFileError where a codec does not fit a tensor.
    """

    def __init__(self, run: Run, engines: Mapping[str, Engine], *, part_bytes: int | None = None, alias: bool = False) -> None:
        graph = run.graph()
        (edge,) = graph.edges
        self._run, self._edge, self._part_bytes, self._alias = run, edge, part_bytes, alias
        self._source, self._target = (
            Cuts(run, graph.slice_for(graph.party_of(name, 0)), {name: engines[name]}) for name in (edge.source, edge.target)
        )

    def forward(
        self, step: int, outputs: Mapping[str, Array], extras: Mapping[str, Array], *, progress: float = 0.0
    ) -> tuple[tuple[int, ...], dict[str, Array]]:
        """The packets that carry the source's outputs and what rides along, and what the target makes of them. Raises CodecError."""
        payloads = self._source.encode_forward(self._work(self._edge.source, step), outputs, extras, progress)
        arrived = self._target.decode_forward(self._work(self._edge.target, step), payloads, progress)
        return self._packets(Kind.FORWARD, payloads), arrived

    def backward(self, step: int, grads: Mapping[str, Array], *, progress: float = 0.0) -> tuple[tuple[int, ...], dict[str, Array]]:
        """The same of the target's gradients on their way back; encoders learn from them. Raises CodecError."""
        payloads = self._target.encode_backward(self._work(self._edge.target, step), grads, progress)
        arrived = self._source.decode_backward(self._work(self._edge.source, step), payloads, progress)
        return self._packets(Kind.BACKWARD, payloads), arrived

    def state(self) -> dict[str, Array]:
        """Of the source's encoders."""
        return self._source.state()

    def _work(self, segment: str, step: int) -> Work:
        return Work(segment=segment, lane=0, step=step, global_step=step, mode=Mode.TRAIN)

    def _packets(self, kind: Kind, payloads: Mapping[str, bytes]) -> tuple[int, ...]:
        frame = Frame(kind=kind, payload=payloads[self._edge.name])
        return packets_of(self._run, frame, part_bytes=self._part_bytes, alias=self._alias and kind is Kind.FORWARD)
