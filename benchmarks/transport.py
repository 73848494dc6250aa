"""Round trips a second over a broker on this machine, QoS 1: request and reply, each put into a frame and taken out of it.

    python -m benchmarks.transport [--bytes 16000] [--seconds 5]        writes docs/benchmarks/transport.md

Two processes and mosquitto, all with TCP_NODELAY. Beside it the same bytes with paho alone, without frames: what the library itself can do.
``--profile`` prints where the time of this process goes instead.
"""

from __future__ import annotations

import argparse
import cProfile
import multiprocessing
import os
import queue
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event
from typing import Any

from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion

from benchmarks.common import hardware, spread, write_page
from server.broker import start_broker
from wire.frames import Frame, Kind, Reassembler, encode
from wire.transport.base import LinkUp, Received, TransportEvent
from wire.transport.broker_config import BrokerConfig
from wire.transport.mqtt import MqttTransport

TAG = 1
PART_BYTES = 1 << 16
TO_SERVER, TO_CLIENT = (f"cl/1/bench/0123456789abcdef/0/{way}" for way in "fb")
BAR = 500
BATCH = 50  # round trips a sample

Samples = tuple[list[float], list[float]]  # round trips a second; this process's seconds of CPU a round trip


# ------------------------------------------------------------ ours


def echo(url: str, size: int, ready: Event, stop: Event) -> None:
    """The server's end: each frame is answered by one of the same size."""
    heard: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    transport = MqttTransport(BrokerConfig(url=url), client_id="bench-server")
    transport.open((TO_SERVER,), heard.put)
    reassembler, reply = Reassembler(), os.urandom(size)
    while not stop.is_set():
        try:
            event = heard.get(timeout=0.2)
        except queue.Empty:
            continue
        if isinstance(event, LinkUp):
            ready.set()
        elif isinstance(event, Received):
            frame = reassembler.feed(event.topic, event.payload, TAG)
            assert frame is not None
            for part in encode(Frame(kind=Kind.BACKWARD, step=frame.step, payload=reply), run_tag=TAG, part_bytes=PART_BYTES):
                transport.publish(TO_CLIENT, part, frame.step)
    transport.close()


def ours(url: str, size: int, seconds: float) -> Samples:
    heard: queue.SimpleQueue[TransportEvent] = queue.SimpleQueue()
    transport = MqttTransport(BrokerConfig(url=url), client_id="bench-client")
    transport.open((TO_CLIENT,), heard.put)
    assert isinstance(heard.get(timeout=30), LinkUp)
    reassembler, payload = Reassembler(), os.urandom(size)
    step = 0

    def round_trip() -> None:
        nonlocal step
        step += 1
        for part in encode(Frame(kind=Kind.FORWARD, step=step, payload=payload), run_tag=TAG, part_bytes=PART_BYTES):
            transport.publish(TO_SERVER, part, step)
        while True:
            event = heard.get(timeout=30)
            if isinstance(event, Received):
                frame = reassembler.feed(event.topic, event.payload, TAG)
                assert frame is not None
                assert frame.step == step
                return

    found = sampled(round_trip, seconds)
    transport.close()
    return found


# ------------------------------------------------------------ paho alone


def paho(url: str, client_id: str, topic: str, heard: Callable[[Client, bytes], None]) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, client_id=client_id)
    client.on_message = lambda me, _, message: heard(me, message.payload)
    client.on_socket_open = lambda me, _, link: link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    subscribed: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.on_connect = lambda me, *_: me.subscribe(topic, 1)
    client.on_subscribe = lambda *_: subscribed.put(True)
    client.connect("127.0.0.1", int(url.rpartition(":")[2]))
    client.loop_start()
    subscribed.get(timeout=30)
    return client


def void(_: object) -> None:
    """For a lambda that returns nothing."""


def paho_echo(url: str, size: int, ready: Event, stop: Event) -> None:
    reply = os.urandom(size)
    client = paho(url, "bench-server", TO_SERVER, lambda me, _: void(me.publish(TO_CLIENT, reply, 1)))
    ready.set()
    stop.wait()
    client.loop_stop()


def paho_alone(url: str, size: int, seconds: float) -> Samples:
    answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    client = paho(url, "bench-client", TO_CLIENT, lambda _, payload: answers.put(payload))
    payload = os.urandom(size)

    def round_trip() -> None:
        client.publish(TO_SERVER, payload, 1)
        answers.get(timeout=30)

    found = sampled(round_trip, seconds)
    client.loop_stop()
    return found


# ------------------------------------------------------------ both


def sampled(round_trip: Callable[[], None], seconds: float) -> Samples:
    for _ in range(BATCH):
        round_trip()
    rates, cpu_s, end_s = [], [], time.monotonic() + seconds
    while time.monotonic() < end_s or len(rates) < 3:
        began_s, before_s = time.perf_counter(), time.process_time()
        for _ in range(BATCH):
            round_trip()
        rates.append(BATCH / (time.perf_counter() - began_s))
        cpu_s.append((time.process_time() - before_s) / BATCH)
    return rates, cpu_s


def measure(server: Callable[..., None], client: Callable[[str, int, float], Samples], size: int, seconds: float) -> Samples:
    context = multiprocessing.get_context("spawn")
    ready, stop = context.Event(), context.Event()
    with start_broker(engine="mosquitto") as broker:
        process = context.Process(target=server, args=(broker.url, size, ready, stop))
        process.start()
        try:
            assert ready.wait(60)
            return client(broker.url, size, seconds)
        finally:
            stop.set()
            process.join()


def _profile(size: int, seconds: float) -> None:
    """Of the transport's thread on the client's side."""
    profile = cProfile.Profile()
    run = MqttTransport._run
    MqttTransport._run = lambda self, waker: profile.runcall(run, self, waker)  # type: ignore[method-assign]
    measure(echo, ours, size, seconds)
    profile.print_stats("tottime")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bytes", type=int, default=16_000)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--profile", action="store_true")
    arguments = parser.parse_args()
    if arguments.profile:
        return _profile(arguments.bytes, arguments.seconds)
    rows = [
        ("frames over our transport", measure(echo, ours, arguments.bytes, arguments.seconds)),
        ("paho alone, no frames", measure(paho_echo, paho_alone, arguments.bytes, arguments.seconds)),
    ]
    lines = ["# Round trips over a local broker", ""]
    verdict = "met" if statistics.median(rows[0][1][0]) >= BAR else "missed"
    lines += [f"Bar: {BAR} round trips a second at 16 kB, {verdict}. Written by `make bench-transport`.", ""]
    lines += [f"Request and reply of {arguments.bytes} bytes each, QoS 1, two processes and mosquitto on one machine.", ""]
    lines += [*hardware("paho-mqtt"), f"- load average of the machine: {os.getloadavg()[0]:.1f}"]
    lines += ["", "| | round trips a second, median (quartiles) | CPU of the client's process a round trip |", "|---|---|---|"]
    lines += [f"| {name} | {spread(rates, unit='/s', scale=1)} | {spread(cpu_s)} |" for name, (rates, cpu_s) in rows]
    write_page("transport", lines)


if __name__ == "__main__":
    main()
