"""The ``[broker]`` table: what is read out of an address, and what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wire.errors import RunFileError
from wire.limits import LIMITS
from wire.parse import parse
from wire.transport.broker_config import BrokerConfig


@pytest.mark.parametrize(
    ("url", "host", "port", "tls"),
    [
        ("mqtt://192.168.0.2", "192.168.0.2", 1883, False),
        ("mqtt://broker.lab:2883", "broker.lab", 2883, False),
        ("mqtts://broker.lab", "broker.lab", 8883, True),
        ("mqtts://broker.lab:443/", "broker.lab", 443, True),
        ("mqtt://[::1]", "::1", 1883, False),
        ("mqtts://[2001:db8::2]:8884", "2001:db8::2", 8884, True),
    ],
)
def test_an_address_is_taken_apart(url: str, host: str, port: int, tls: bool) -> None:
    broker = BrokerConfig(url=url)
    assert (broker.host, broker.port, broker.tls) == (host, port, tls)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"url": "broker.lab:1883"}, "must begin with mqtt:// or mqtts://"),
        ({"url": "http://broker.lab"}, "must begin with mqtt:// or mqtts://"),
        ({"url": "mqtt://"}, "write it like mqtt://"),
        ({"url": "mqtt://broker.lab/topic"}, "write it like mqtt://"),
        ({"url": "mqtt://broker.lab:99999"}, "not an address"),
        ({"url": "mqtt://broker.lab:0"}, "not an address"),
        ({"url": "mqtt://[::1"}, "not an address"),
        ({"url": "mqtt://alice:secret@broker.lab"}, "use `username` and `password_file`"),
        ({"ca": "ca.pem"}, "begin `url` with mqtts://"),
        ({"url": "mqtts://broker.lab", "cert": "client.pem"}, "give both or neither"),
        ({"url": "mqtts://broker.lab", "key": "client.key"}, "give both or neither"),
        ({"password_file": "password.txt"}, "needs a `username`"),
        ({"keepalive_s": 1}, "`keepalive_s` is 1"),
        ({"part_bytes": 100}, "`part_bytes` is 100"),
        ({"part_bytes": LIMITS.frame_bytes + 1}, "`part_bytes` is"),
        ({"connect_timeout_s": 0.0}, "`connect_timeout_s` is 0.0"),
        ({"connect_timeout_s": float("nan")}, "`connect_timeout_s` is nan"),
    ],
)
def test_what_cannot_be_is_refused_by_name(values: dict[str, Any], said: str) -> None:
    with pytest.raises(RunFileError) as caught:
        parse(BrokerConfig, values, where="broker", error=RunFileError)
    assert str(caught.value).startswith("broker: ")
    assert said in str(caught.value)


def test_a_password_in_the_address_is_not_repeated() -> None:
    with pytest.raises(ValueError) as caught:
        BrokerConfig(url="mqtt://alice:secret@broker.lab")
    assert "secret" not in str(caught.value)


@given(st.text())
def test_any_text_is_an_address_or_a_value_error(text: str) -> None:
    try:
        broker = BrokerConfig(url="mqtt://" + text)
    except ValueError:
        return
    assert broker.host
    assert 1 <= broker.port <= 65535
    assert dataclasses.replace(broker) == broker
