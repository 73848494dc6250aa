"""How long a message waits for its answer before it is sent again."""

from __future__ import annotations

import pytest

from wire.frames import Frame, Kind
from wire.graph import Line
from wire.messages import Effect, Send, SetTimer
from wire.outbox import Outbox

LINE = Line("bottom>top", 0, True)


def waits(*, resend_after_s: float, times: int) -> list[float]:
    """Of a message that nobody answers."""
    effects: list[Effect] = []
    outbox = Outbox(effects.append, resend_after_s=resend_after_s)
    outbox.put("key", LINE, Frame(kind=Kind.FORWARD, payload=b"x"))
    found = []
    for _ in range(times):
        (sent,) = [effect for effect in effects if isinstance(effect, Send)]
        effects.clear()
        outbox.delivered(sent.token)
        (timer,) = [effect for effect in effects if isinstance(effect, SetTimer)]
        found.append(timer.after_s)
        effects.clear()
        outbox.timer_fired("key")
    return found


@pytest.mark.parametrize(
    ("resend_after_s", "expected"),
    [(10.0, [10.0, 20.0, 40.0, 60.0, 60.0]), (60.0, [60.0] * 5), (600.0, [600.0] * 5)],
)
def test_waits_double_up_to_a_minute_and_are_never_shorter_than_the_run_says(resend_after_s: float, expected: list[float]) -> None:
    assert waits(resend_after_s=resend_after_s, times=5) == expected
