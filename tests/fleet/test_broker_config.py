"""The configuration that is written for a broker: for each version, from the edges of runs; what mosquitto makes of it: test_attacks.py."""

from __future__ import annotations

import configparser
import os
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from fleet.access import access_list, rights_of
from fleet.broker_config import mosquitto_version, write_broker_config
from fleet.state import Fleet
from tests.fleet.fleets import DAY_S, RUN, Clock
from wire.errors import CutlayerError, StorageError, UsageError
from wire.runfile import Run, load_run


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    found = Fleet(folder=tmp_path / "fleet", clock=Clock())
    found.create("test fleet")
    return found


def run_file(folder: Path, *rows: str, file: str = "run.toml", **changes: str) -> Path:
    """``RUN`` with changed rows; ``rows`` belong to [broker]."""
    text = RUN.replace("PORT", "8883")
    for key, value in changes.items():
        text = re.sub(rf"^{key} = .*$", f"{key} = {value}", text, flags=re.MULTILINE)
    path = folder / file
    path.write_text("\n".join([text, *rows]))
    return path


def written(fleet: Fleet, out: Path, *run_files: Path, **options: Any) -> dict[str, str]:
    """By name, the files that are written."""
    plain: dict[str, Any] = {"at": "/etc/fleet", "names": [], "bind": None, "mosquitto": "2.0", "operator": "operator", "audit": False}
    plain["acl_plugin"] = "mosquitto_acl_file.so"
    write_broker_config(fleet, list(run_files), out=out, **(plain | options))
    return {path.name: path.read_text() for path in out.iterdir() if path.is_file()}


def rows(text: str) -> dict[str, str]:
    """Key and value of each row of mosquitto.conf."""
    return dict(row.partition(" ")[::2] for row in text.splitlines() if not row.startswith(("#", "log_type")))


# ------------------------------------------------------------ mosquitto.conf


def test_version_20(fleet: Fleet, tmp_path: Path) -> None:
    found = rows(written(fleet, tmp_path / "out", run_file(tmp_path))["mosquitto.conf"])
    assert found["listener"] == "8883"
    assert found["acl_file"] == "/etc/fleet/acl"
    assert found["require_certificate"] == found["use_identity_as_username"] == found["use_username_as_clientid"] == "true"
    assert found["allow_anonymous"] == found["retain_available"] == "false"
    assert found["set_tcp_nodelay"] == found["persistence"] == "true"
    assert "plugin" not in found


def test_version_21_has_a_plugin_instead_of_what_it_deprecates(fleet: Fleet, tmp_path: Path) -> None:
    found = rows(written(fleet, tmp_path / "out", run_file(tmp_path), mosquitto="2.1", acl_plugin="/opt/acl.so")["mosquitto.conf"])
    assert found["plugin"] == "/opt/acl.so"
    assert found["plugin_opt_acl_file"] == "/etc/fleet/acl"
    assert not {"acl_file", "password_file", "per_listener_settings"} & set(found)


def test_packets_are_as_long_as_the_longest_part_of_a_run(fleet: Fleet, tmp_path: Path) -> None:
    small, large = run_file(tmp_path, "part_bytes = 1024"), run_file(tmp_path, "part_bytes = 500000", file="large.toml")
    assert rows(written(fleet, tmp_path / "a", small)["mosquitto.conf"])["max_packet_size"] == str(65536 + 1024)
    assert rows(written(fleet, tmp_path / "b", small, large)["mosquitto.conf"])["max_packet_size"] == str(500000 + 1024)


def test_the_version_is_that_of_the_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert mosquitto_version() >= (2, 0)
    program = tmp_path / "mosquitto"
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for says, version in (("mosquitto version 2.1.2\n\nmosquitto is an MQTT broker.", (2, 1)), ("mosquitto version 3.0.0", (3, 0))):
        program.write_text(f"#!/bin/sh\necho '{says}'\nexit 3\n")
        program.chmod(0o755)
        assert mosquitto_version() == version
    program.write_text("#!/bin/sh\necho 'mosquitto version 1.6.9'\n")
    with pytest.raises(UsageError, match=r"is version 1\.6; install 2\.0 or newer"):
        mosquitto_version()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"url": '"mqtt://127.0.0.1:1883"'}, {}, "a fleet's begins with mqtts://"),
        ({"name": '"d"'}, {}, "a run cannot be called `d`"),
        ({}, {"operator": "c0"}, "`c0` is a party of a run and the operator's name as well"),
        ({}, {"operator": "a b"}, "letters, digits"),
        ({}, {"at": "/etc/a\nb"}, "a character that a configuration cannot hold"),
        ({}, {"at": '/etc/a"b'}, "cannot be written into a systemd unit"),
        ({}, {"names": ["a b"]}, "is no name or address of a computer"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(
    fleet: Fleet, tmp_path: Path, changes: dict[str, str], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(CutlayerError) as caught:
        written(fleet, tmp_path / "out", run_file(tmp_path, **changes), **options)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out" / "mosquitto.conf").exists()


def test_who_commands_devices_is_none_of_them(fleet: Fleet, tmp_path: Path) -> None:
    with fleet.registry() as registry:
        registry.add("boss", token_digest=b"x", expires_s=0.0)
        with pytest.raises(UsageError, match="`boss` is a device and the operator's name as well"):
            written(fleet, tmp_path / "out", run_file(tmp_path), operator="boss")
        written(fleet, tmp_path / "out", run_file(tmp_path), operator="chief")
        with pytest.raises(UsageError, match="`chief` is the operator's name"):
            registry.add("chief", token_digest=b"y", expires_s=0.0)


def test_runs_at_two_brokers(fleet: Fleet, tmp_path: Path) -> None:
    other = run_file(tmp_path, file="other.toml", url='"mqtts://elsewhere:8883"')
    with pytest.raises(UsageError, match="another broker than that of"):
        written(fleet, tmp_path / "out", run_file(tmp_path), other)


# ------------------------------------------------------------ who may what


def load(folder: Path, *more: str, **changes: str) -> Run:
    return load_run(run_file(folder, *more, **changes))


def test_each_topic_has_one_writer_and_one_reader(tmp_path: Path) -> None:
    found = rights_of([load(tmp_path, schedule='"relay"\nhand_over = "peer"')])
    assert set(found) == {"c0", "c1", "server"}
    writes = [topic for rights in found.values() for topic in rights.writes]
    reads = [topic for rights in found.values() for topic in rights.reads]
    assert len(set(writes)) == len(writes)
    assert sorted(writes) == sorted(reads)


def test_every_line_of_every_party_is_in_it_and_no_other(tmp_path: Path) -> None:
    """With the lines between clients, and those of split inference."""
    run = load(tmp_path, schedule='"relay"\nhand_over = "peer"')
    found = rights_of([run])
    for party in ("c0", "c1", "server"):
        topics = [run.topics(line) for line in run.slice_for(party).lines]
        assert {publish for publish, _ in topics} <= set(found[party].writes)
        assert {subscribe for _, subscribe in topics} <= set(found[party].reads)
    predicting = set(found["c0"].writes) - {run.topics(line)[0] for line in run.slice_for("c0").lines}
    assert len(predicting) == 1
    assert predicting <= set(found["server"].reads)


def test_the_list_of_several_runs_and_without_who_is_revoked(tmp_path: Path) -> None:
    runs = [load(tmp_path), load(tmp_path, name='"second"')]
    text = access_list(rights_of(runs), revoked=["c1"], operator="operator")
    sections = dict(each.split("\n", 1) for each in re.split(r"^user ", text, flags=re.MULTILINE)[1:])
    assert set(sections) == {"c0", "server", "operator"}
    assert "cl/1/clinics/" in sections["c0"]
    assert "cl/1/second/" in sections["c0"]
    assert "#" not in sections["c0"]
    assert "+" not in sections["c0"]


# ------------------------------------------------------------ files beside


def test_written_again_the_broker_keeps_its_certificate_until_it_is_time(fleet: Fleet, tmp_path: Path) -> None:
    path = run_file(tmp_path)
    first = written(fleet, tmp_path / "out", path)
    assert (tmp_path / "out" / "broker.key").stat().st_mode & 0o777 == 0o600
    assert written(fleet, tmp_path / "out", path)["broker.pem"] == first["broker.pem"]
    named = written(fleet, tmp_path / "out", path, names=["broker.example"])["broker.pem"]
    assert named != first["broker.pem"]
    assert isinstance(fleet.clock, Clock)
    fleet.clock.now_s += 300 * DAY_S
    renewed = written(fleet, tmp_path / "out", path, names=["broker.example"])["broker.pem"]
    assert renewed != named
    names = x509.load_pem_x509_certificate(renewed.encode()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["127.0.0.1", "broker.example"]
    (tmp_path / "out" / "broker.key").write_bytes(fleet.authority().issue_host(("x",))[1])  # power was cut between the two files
    assert written(fleet, tmp_path / "out", path, names=["broker.example"])["broker.pem"] != renewed
    (tmp_path / "out" / "broker.key").write_bytes(b"damaged")
    with pytest.raises(StorageError, match=r"broker\.key is no private key; remove it, and a new one is made"):
        written(fleet, tmp_path / "out", path, names=["broker.example"])


def test_units_and_compose_name_files_that_are_there(fleet: Fleet, tmp_path: Path) -> None:
    path, out = run_file(tmp_path), tmp_path / "out 100%"
    found = written(fleet, out, path, at=str(out), names=["hub.example"])
    for unit in ("broker", "server", "ca"):
        parser = configparser.RawConfigParser(strict=False)
        parser.optionxform = str  # type: ignore[assignment, method-assign]
        parser.read_string(found[f"cutlayer-{unit}.service"])
        assert set(parser.sections()) == {"Unit", "Service", "Install"}
        assert parser["Service"]["NoNewPrivileges"] == "yes"
    assert f'-c "{out}/mosquitto.conf"'.replace("%", "%%") in found["cutlayer-broker.service"]
    assert f"serve {path}" in found["cutlayer-server.service"]
    assert "ca serve --name 127.0.0.1 --name hub.example --fleet" in found["cutlayer-ca.service"], "as the broker is reached"
    assert f"{out}:{out}" in found["compose.yaml"]
    assert "eclipse-mosquitto:2.0" in found["compose.yaml"]


def test_no_file_but_the_key_holds_a_secret(fleet: Fleet, tmp_path: Path) -> None:
    found = written(fleet, tmp_path / "out", run_file(tmp_path))
    secret = (fleet.folder / "ca" / "ca.key").read_text().splitlines()[1]
    assert [name for name, text in found.items() if "PRIVATE KEY" in text] == ["broker.key"]
    assert not any(secret in text for text in found.values())


# ------------------------------------------------------------ the server's identity

KEYS = ('ca = "identity/ca.pem"', 'cert = "identity/cert.pem"', 'key = "identity/key.pem"')


def test_the_runs_server_has_its_identity_on_the_spot(fleet: Fleet, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_file(tmp_path, *KEYS)
    written(fleet, tmp_path / "out", path)
    assert f"{tmp_path}/identity/cert.pem: the certificate of `server`" in capsys.readouterr().out
    cert, key = tmp_path / "identity/cert.pem", tmp_path / "identity/key.pem"
    found = x509.load_pem_x509_certificate(cert.read_bytes())
    assert found.subject.rfc4514_string() == "CN=server"
    assert key.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "identity/ca.pem").read_text() == fleet.authority().pem
    with fleet.registry() as registry:
        assert registry.certificate(found.serial_number) is not None, "so that it is renewed and revoked like any other"
    before = cert.read_bytes()
    written(fleet, tmp_path / "out", path)
    assert cert.read_bytes() == before, "whoever has one keeps it"


def test_a_run_file_that_names_no_identity_gets_none(fleet: Fleet, tmp_path: Path) -> None:
    written(fleet, tmp_path / "out", run_file(tmp_path))
    assert not (tmp_path / "identity").exists()
