"""The same run over every broker ends with the same weights: mosquitto plain, mosquitto with TLS and certificates, and the embedded one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.brokers import Broker, embedded, mosquitto, mosquitto_tls
from tests.e2e.field import Field, field, small_run

STEPS_A_LANE = 2 * 20


def trained(folder: Path, broker: Broker, **changes: Any) -> Field:
    keys = {key: str(broker.folder / value) if key in ("ca", "cert", "key") else value for key, value in broker.keys.items()}
    path = small_run(folder, broker=keys, **changes)
    with field(path, broker.config().url) as run:
        run.finish()
        run.check_ledgers(STEPS_A_LANE)
        return run


@pytest.fixture(scope="module")
def over_mosquitto(tmp_path_factory: pytest.TempPathFactory) -> Field:
    with mosquitto() as broker:
        return trained(tmp_path_factory.mktemp("plain"), broker)


def test_tls_with_client_certificates(over_mosquitto: Field, tmp_path: Path) -> None:
    with mosquitto_tls(client_certificates=True) as broker:
        assert trained(tmp_path, broker).weights() == over_mosquitto.weights()


def test_embedded(over_mosquitto: Field, tmp_path: Path) -> None:
    with embedded() as broker:
        assert trained(tmp_path, broker).weights() == over_mosquitto.weights()


def test_nothing_was_sent_twice_and_nothing_was_corrupt(over_mosquitto: Field) -> None:
    finished = [event for event in over_mosquitto.seen if event["event"] == "finished"]
    assert len(finished) == 3
    assert [set(event["counts"]) for event in finished] == [{"applied"}] * 3


def test_a_client_loads_neither_torch_nor_onnx(over_mosquitto: Field) -> None:
    clients = [event for event in over_mosquitto.seen if event["event"] == "finished" and event["party"] != "server"]
    assert [event["modules_forbidden"] for event in clients] == [[], []]


@pytest.mark.parametrize("in_flight", [2, 3])
def test_independent_clients_with_steps_in_flight(in_flight: int, tmp_path: Path) -> None:
    with mosquitto() as broker:
        first = trained(tmp_path / "a", broker, schedule="independent", in_flight=in_flight)
        again = trained(tmp_path / "b", broker, schedule="independent", in_flight=in_flight)
        assert first.weights() == again.weights()
