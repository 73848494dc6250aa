"""``cutlayer broker config``: all that a mosquitto needs to serve runs with mutual TLS, in one folder.

mosquitto.conf      for the version found: 2.0 has `acl_file`, 2.1 an access list plugin instead
acl                 by identity, from the runs' own edges
ca.pem, crl.pem     who is let in, and who no more
broker.pem, .key    the broker's own certificate; kept while it is good for the same names
*.service           systemd units of the broker, the server and the authority
compose.yaml        the broker and the server as containers
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.x509.oid import ExtensionOID

from fleet.access import access_list, rights_of
from fleet.authority import Authority, check_hosts
from fleet.identity import bring_identity
from fleet.registry import Registry
from fleet.state import Fleet
from fleet.units import compose_file, units
from wire.enrolment import due_s
from wire.errors import UsageError
from wire.limits import LIMITS
from wire.private_key import open_key
from wire.runfile import Run, load_run
from wire.store import storage_errors, write_atomically

__all__ = ["BrokerPlan", "mosquitto_conf", "mosquitto_version", "write_broker_config"]

_HEAD_BYTES = 1024  # of a packet: topic and properties
_QUEUE_BYTES = 256 << 20  # for one client that does not read
_VERSION = re.compile(r"mosquitto version (\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPlan:
    """``at``: the folder on the broker's computer. ``version``: (2, 0) or (2, 1). ``packet_bytes``: of the longest packet it takes."""

    at: str
    port: int
    bind: str | None
    version: tuple[int, int]
    packet_bytes: int
    acl_plugin: str
    audit: bool

    def __post_init__(self) -> None:
        for text in (self.at, self.bind or "", self.acl_plugin):
            if not text.isprintable():
                raise UsageError(f"{text!r} has a character that a configuration cannot hold")


def write_broker_config(
    fleet: Fleet,
    run_files: list[Path],
    *,
    out: Path,
    at: str | None,
    names: list[str],
    bind: str | None,
    mosquitto: str | None,
    acl_plugin: str,
    operator: str,
    audit: bool,
) -> None:
    """Write the folder and say what to do with it. Raises CutlayerError."""
    runs = [load_run(path) for path in run_files]
    host, port = _address(runs, run_files)
    hosts = check_hosts(tuple(dict.fromkeys([host, *names, *([bind] if bind else [])])))
    plan = BrokerPlan(
        at=at or str(out.resolve()),
        port=port,
        bind=bind,
        version=mosquitto_version() if mosquitto is None else _version(mosquitto),
        packet_bytes=max(LIMITS.talk_bytes, *(run.broker.part_bytes for run in runs)) + _HEAD_BYTES,
        acl_plugin=acl_plugin,
        audit=audit,
    )
    authority = fleet.authority()
    with fleet.registry() as registry:
        if operator in {row.name for row in registry.devices()}:
            raise UsageError(f"`{operator}` is a device and the operator's name as well; choose another --operator NAME")
        revoked = [row.name for row in registry.devices() if row.revoked_s is not None]
        identities = [line for run in runs for line in _server_identity(fleet, registry, run)]
        crl = fleet.write_crl(registry)
    texts = {
        "acl": access_list(rights_of(runs), revoked=revoked, operator=operator),
        "ca.pem": authority.pem,
        "crl.pem": crl.decode(),
        "mosquitto.conf": mosquitto_conf(plan),
        "compose.yaml": compose_file(plan.at, plan.port, version=plan.version, run_file=run_files[0].resolve()),
        **units(plan.at, hosts=hosts, run_file=run_files[0].resolve(), fleet=fleet.folder.resolve()),
    }
    _keep_certificate(authority, out, hosts, fleet.clock())
    for name, text in texts.items():
        write_atomically(out / name, text.encode(), private=name == "acl")  # mosquitto 2.1 wants it so
    with storage_errors(out):
        (out / "data").mkdir(mode=0o700, exist_ok=True)
    with fleet.registry() as registry:
        registry.set_setting("operator", operator)
        registry.set_setting("broker", runs[0].broker.url)
    _say(out, plan, runs[0], host)
    for line in identities:
        print(line)


def mosquitto_conf(plan: BrokerPlan) -> str:
    """No comment may follow a value: mosquitto would take it as a part of it."""
    at = plan.at
    if plan.version < (2, 1):
        acl = [f"acl_file {at}/acl"]
    else:
        acl = [f"plugin {plan.acl_plugin}", f"plugin_opt_acl_file {at}/acl"]
    log = ["error", "warning", "notice", "information", "subscribe", *(["debug"] if plan.audit else [])]
    rows = [
        "# Written by `cutlayer broker config`; write it again rather than change it.",
        f"listener {plan.port} {plan.bind}" if plan.bind else f"listener {plan.port}",
        "# Mutual TLS: who shows no certificate of the fleet, or a revoked one, is not let in.",
        f"cafile {at}/ca.pem",
        f"certfile {at}/broker.pem",
        f"keyfile {at}/broker.key",
        f"crlfile {at}/crl.pem",
        "tls_version tlsv1.2",
        "require_certificate true",
        "# The name in the certificate is user and client id, whatever the client says.",
        "use_identity_as_username true",
        "use_username_as_clientid true",
        "allow_anonymous false",
        *acl,
        "# Limits.",
        f"max_packet_size {plan.packet_bytes}",
        "max_inflight_messages 20",
        "max_queued_messages 0",
        f"max_queued_bytes {_QUEUE_BYTES}",
        "max_keepalive 600",
        "persistent_client_expiration 14d",
        "# Nothing of ours is retained, so whatever is was planted.",
        "retain_available false",
        "persistence true",
        f"persistence_location {at}/data/",
        "autosave_interval 30",
        "# Without this, delayed acknowledgements cost 88 ms a step.",
        "set_tcp_nodelay true",
        "log_dest stderr",
        "log_timestamp_format %Y-%m-%d %H:%M:%S",
        *(f"log_type {kind}" for kind in log),
    ]
    return "\n".join(rows) + "\n"


def mosquitto_version() -> tuple[int, int]:
    """Of the mosquitto on this computer. Raises UsageError where there is none, or one before 2.0."""
    path = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/opt/homebrew/sbin")
    if path is None:
        raise UsageError("mosquitto is not installed here, so its version is not known; say it with --mosquitto 2.0 or --mosquitto 2.1")
    said = subprocess.run([path, "-h"], capture_output=True, text=True, errors="replace", timeout=20).stdout
    found = _VERSION.search(said)
    if found is None:
        raise UsageError(f"{path} does not say its version; say it with --mosquitto 2.0 or --mosquitto 2.1")
    version = (int(found[1]), int(found[2]))
    if version < (2, 0):
        raise UsageError(f"{path} is version {version[0]}.{version[1]}; install 2.0 or newer")
    return version


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)


def _address(runs: list[Run], run_files: list[Path]) -> tuple[str, int]:
    for run, path in zip(runs, run_files, strict=True):
        if not run.broker.tls:
            raise UsageError(
                f"{path}: [broker] `url` is {run.broker.url!r}; a fleet's begins with mqtts://, like mqtts://broker.example:8883"
            )
        if (run.broker.host, run.broker.port) != (runs[0].broker.host, runs[0].broker.port):
            raise UsageError(
                f"{path}: [broker] `url` is {run.broker.url!r}, another broker than that of {run_files[0]}; write one folder for each"
            )
    return runs[0].broker.host, runs[0].broker.port


def _keep_certificate(authority: Authority, out: Path, hosts: tuple[str, ...], now_s: float) -> None:
    """The broker's certificate in ``out``, made anew unless the one there is for the same hosts, of this authority, and has time left."""
    path, key_path = out / "broker.pem", out / "broker.key"
    if path.exists() and key_path.exists():
        found = x509.load_pem_x509_certificate(path.read_bytes())
        held = open_key(key_path, lost="remove it, and a new one is made").public_key()
        young = now_s < due_s(found.not_valid_before_utc.timestamp(), found.not_valid_after_utc.timestamp())
        if young and _hosts(found) == set(hosts) and held == found.public_key() and authority.has_signed(found):
            return
    certificate, key = authority.issue_host(hosts)
    write_atomically(key_path, key, private=True)
    write_atomically(path, certificate.encode())


def _hosts(certificate: x509.Certificate) -> set[str]:
    names = certificate.extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME).value
    assert isinstance(names, x509.SubjectAlternativeName)
    return {str(each.value) for each in names}


def _server_identity(fleet: Fleet, registry: Registry, run: Run) -> Iterator[str]:
    """Where the run's only server finds its certificate, unless it has enrolled: it mostly runs where this is written. What to say."""
    broker, servers = run.broker, run.all_servers
    if not (broker.ca and broker.cert and broker.key) or len(servers) != 1:
        return
    cert, key, ca = (run.path(each) for each in (broker.cert, broker.key, broker.ca))
    if cert.exists():
        return
    bring_identity(fleet, registry, servers[0].name, cert=cert, key=key, device=True)
    write_atomically(ca, fleet.authority().pem.encode())
    yield f"{cert}: the certificate of `{servers[0].name}`; beside it its key, and the authority's certificate"


def _say(out: Path, plan: BrokerPlan, run: Run, host: str) -> None:
    print(f"{out}: mosquitto {plan.version[0]}.{plan.version[1]} on port {plan.port}, packets of at most {plan.packet_bytes} bytes")
    print(f"copy it to {plan.at} on {host}; then one of")
    print(f"  sudo cp {plan.at}/cutlayer-broker.service /etc/systemd/system/ && sudo systemctl enable --now cutlayer-broker")
    print(f"  docker compose --project-directory {plan.at} up -d broker")
    if not (run.broker.ca and run.broker.cert and run.broker.key):
        print('in the run file\'s [broker]:  ca = "identity/ca.pem"  cert = "identity/cert.pem"  key = "identity/key.pem"')
