"""A broker without MQTT 5, before a real one that has it: it turns down version 5 and passes 3.1.1 on."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

__all__ = ["without_mqtt5"]

_VERSION_AT = 8  # in CONNECT, where its length takes one byte
_NO = bytes([0x20, 3, 0, 0x84, 0])


@contextlib.contextmanager
def without_mqtt5(port: int) -> Iterator[int]:
    """The port where it listens, in front of the broker on ``port``."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_serve, args=(listener, port))
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def _serve(listener: socket.socket, port: int) -> None:
    threads = []
    with contextlib.suppress(OSError):
        while True:
            client, _ = listener.accept()
            first = client.recv(4096)
            if first[_VERSION_AT] == 5:
                with client:
                    client.sendall(_NO)
                continue
            broker = socket.create_connection(("127.0.0.1", port))
            broker.sendall(first)
            for source, sink in ((client, broker), (broker, client)):
                threads.append(threading.Thread(target=_pass_on, args=(source, sink)))
                threads[-1].start()
    for thread in threads:
        thread.join()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
    for link in (source, sink):
        with contextlib.suppress(OSError):
            link.shutdown(socket.SHUT_RDWR)
    source.close()
