"""What the authority decides, over its real server: first certificates, approval, renewal, keys that change; by a clock that is set."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from edge_client.enroll.ask import AuthorityAddress, ask
from edge_client.enroll.enroll import install, write_request
from edge_client.enroll.identity import Identity
from fleet.authority import DEVICE_DAYS
from fleet.registry import DeviceRow
from fleet.verbs import approve_device, issue_device, revoke_device, state_of
from tests.fleet.fleets import DAY_S, Clock, Served, served
from wire.enrolment import CertificateAnswer, CertificateRequest
from wire.errors import LinkError, UsageError


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Iterator[Served]:
    with served(tmp_path / "fleet", clock=clock) as found:
        yield found


def question(authority: Served, folder: Path, name: str, token: str) -> CertificateAnswer:
    """The bare question, without the device's own checks."""
    request = CertificateRequest(name=name, csr=Identity(folder).request(name), token=token)
    return ask(AuthorityAddress(authority.url), request, ca=authority.fleet.ca_pem, shown=None, timeout_s=10)


def state(authority: Served, name: str) -> str:
    with authority.fleet.registry() as registry:
        return state_of(registry.device(name), authority.fleet.clock())


def serial(folder: Path) -> int:
    found = Identity(folder).certificate()
    assert found is not None
    return found.serial_number


def agents_serial(folder: Path) -> int:
    return x509.load_pem_x509_certificate((folder / "agent.pem").read_bytes()).serial_number


def revoked(authority: Served) -> set[int]:
    with authority.fleet.registry() as registry:
        return {each for each, _ in registry.revoked_serials()}


# ------------------------------------------------------------ the first certificate


def test_a_device_enrols_once(authority: Served, tmp_path: Path, clock: Clock) -> None:
    authority.token("pi-1", tmp_path / "token")
    assert state(authority, "pi-1") == "added"
    found = authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token")
    assert found.done == "enrolled"
    assert found.until_s == pytest.approx(clock.now_s + DEVICE_DAYS * DAY_S, abs=2)
    assert state(authority, "pi-1") == "enrolled"
    assert not (tmp_path / "token").exists()
    assert (tmp_path / "pi-1" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token").done == "nothing"


def test_the_same_key_may_show_its_token_again(authority: Served, tmp_path: Path, clock: Clock) -> None:
    """It may have lost power before it had the answer; also when the token has run out since."""
    token = authority.token("pi-1", tmp_path / "token")
    first = question(authority, tmp_path / "pi-1", "pi-1", token)
    clock.now_s += 2 * DAY_S
    assert question(authority, tmp_path / "pi-1", "pi-1", token) == first
    assert first.state == "issued"
    assert first.chain == authority.fleet.ca_pem.read_text()


def test_a_newer_token_takes_the_place_of_an_older_one(authority: Served, tmp_path: Path) -> None:
    old = authority.token("pi-1", tmp_path / "token")
    authority.token("pi-1", tmp_path / "token")
    assert "a newer one has taken its place" in question(authority, tmp_path / "pi-1", "pi-1", old).reason
    assert authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token").done == "enrolled"


def test_a_card_that_is_written_anew_takes_over(authority: Served, tmp_path: Path) -> None:
    """A new token and a new key: what the old card holds is revoked."""
    old = authority.device("pi-1", tmp_path)
    authority.token("pi-1", tmp_path / "token")
    authority.enroll("pi-1", tmp_path / "new card", token=tmp_path / "token")
    assert revoked(authority) == {serial(old), agents_serial(old)}
    assert authority.enroll("pi-1", tmp_path / "new card").done == "nothing"


def test_a_revoked_device_comes_back_with_a_new_token_alone(authority: Served, tmp_path: Path) -> None:
    folder = authority.device("pi-1", tmp_path)
    old = {serial(folder), agents_serial(folder)}
    used = authority.token("pi-1", tmp_path / "token")
    revoke_device(authority.fleet, "pi-1", broker=None)
    assert state(authority, "pi-1") == "revoked"
    with pytest.raises(UsageError, match="this token is not known"):
        authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token")
    assert authority.token("pi-1", tmp_path / "token") != used
    assert authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token").done == "enrolled"
    assert revoked(authority) == old
    assert not {serial(folder), agents_serial(folder)} & old


# ------------------------------------------------------------ the agent's certificate


def test_a_devices_agent_has_a_certificate_for_the_same_key_that_is_renewed_with_its_own(
    authority: Served, tmp_path: Path, clock: Clock
) -> None:
    folder = authority.device("pi-1", tmp_path)
    first = x509.load_pem_x509_certificate((folder / "agent.pem").read_bytes())
    assert first.subject.rfc4514_string() == "CN=pi-1.agent"
    assert first.public_key() == Identity(folder).key().public_key()
    clock.now_s += 61 * DAY_S
    assert authority.enroll("pi-1", folder).done == "renewed"
    assert agents_serial(folder) != first.serial_number
    assert [row.name for row in devices(authority)] == ["pi-1"]


def devices(authority: Served) -> list[DeviceRow]:
    with authority.fleet.registry() as registry:
        return registry.devices()


def test_a_device_from_before_agents_had_certificates_fetches_one(authority: Served, tmp_path: Path) -> None:
    folder = authority.device("pi-1", tmp_path)
    (folder / "agent.pem").unlink()
    with sqlite3.connect(authority.fleet.folder / "fleet.sqlite") as registry:
        registry.execute("DELETE FROM certificates WHERE name = 'pi-1.agent'")
    registry.close()
    before = (folder / "cert.pem").stat()
    assert authority.enroll("pi-1", folder).done == "renewed"
    assert (folder / "agent.pem").exists()
    assert (folder / "cert.pem").stat() == before
    assert authority.enroll("pi-1", folder).done == "nothing"


def test_an_agents_certificate_renews_nothing(authority: Served, tmp_path: Path) -> None:
    folder = authority.device("pi-1", tmp_path)
    posing = tmp_path / "posing"
    posing.mkdir()
    (posing / "cert.pem").write_bytes((folder / "agent.pem").read_bytes())
    (posing / "key.pem").write_bytes((folder / "key.pem").read_bytes())
    assert "is that of `pi-1.agent`" in renewal(authority, posing, name="pi-1", key=folder)


def test_no_device_can_be_called_like_anothers_agent(authority: Served, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="letters, digits"):
        issue_device(authority.fleet, "pi-1.agent", csr=tmp_path / "x", out=tmp_path / "y")


# ------------------------------------------------------------ approval


def test_with_approval_a_device_waits_for_a_person(tmp_path: Path) -> None:
    with served(tmp_path / "fleet", approve=True) as authority:
        authority.token("pi-1", tmp_path / "token")
        with pytest.raises(LinkError, match="still waits for `cutlayer device approve pi-1`"):
            authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token")
        assert state(authority, "pi-1") == "waits"
        assert (tmp_path / "token").exists()
        authority.token("pi-2", tmp_path / "other")
        with pytest.raises(UsageError, match="does not wait for approval"):
            approve_device(authority.fleet, "pi-2")
        approve_device(authority.fleet, "pi-1")
        assert state(authority, "pi-1") == "approved"
        assert authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token").done == "enrolled"


def test_nobody_slips_in_between_asking_and_approval(tmp_path: Path) -> None:
    with served(tmp_path / "fleet", approve=True) as authority:
        token = authority.token("pi-1", tmp_path / "token")
        assert question(authority, tmp_path / "pi-1", "pi-1", token).state == "pending"
        approve_device(authority.fleet, "pi-1")
        assert "used by another key" in question(authority, tmp_path / "thief", "pi-1", token).reason


# ------------------------------------------------------------ renewal


def test_renewal_at_two_thirds_by_the_certificate_alone(authority: Served, tmp_path: Path, clock: Clock) -> None:
    folder = authority.device("pi-1", tmp_path)
    key, first = (folder / "key.pem").read_bytes(), serial(folder)
    clock.now_s += 59 * DAY_S
    assert authority.enroll("pi-1", folder).done == "nothing"
    clock.now_s += 2 * DAY_S
    found = authority.enroll("pi-1", folder)
    assert found.done == "renewed"
    assert found.until_s == pytest.approx(clock.now_s + DEVICE_DAYS * DAY_S, abs=2)
    assert (folder / "key.pem").read_bytes() == key
    assert serial(folder) != first
    assert revoked(authority) == set()  # what runs with the old one goes on


def test_a_renewal_whose_answer_was_lost_gets_the_same_certificate(authority: Served, tmp_path: Path, clock: Clock) -> None:
    folder = authority.device("pi-1", tmp_path)
    old = (folder / "cert.pem").read_bytes()
    clock.now_s += 61 * DAY_S
    authority.enroll("pi-1", folder)
    renewed = (folder / "cert.pem").read_bytes()
    (folder / "cert.pem").write_bytes(old)  # power was cut before it was on disk
    authority.enroll("pi-1", folder)
    assert (folder / "cert.pem").read_bytes() == renewed


def renewal(authority: Served, shown: Path, *, name: str, key: Path) -> str:
    """Ask for ``name`` and the key in ``key`` while showing the certificate in ``shown``; the refusal."""
    request = CertificateRequest(name=name, csr=Identity(key).request(name))
    pair = (shown / "cert.pem", shown / "key.pem")
    found = ask(AuthorityAddress(authority.url), request, ca=authority.fleet.ca_pem, shown=pair, timeout_s=10)
    assert found.state == "refused"
    return found.reason


def test_a_certificate_renews_nothing_but_itself(authority: Served, tmp_path: Path) -> None:
    mine, other = authority.device("pi-1", tmp_path), authority.device("pi-2", tmp_path)
    assert "is that of `pi-1`" in renewal(authority, mine, name="pi-2", key=mine)
    assert "for another key" in renewal(authority, mine, name="pi-1", key=other)
    request = CertificateRequest(name="pi-1", csr=Identity(mine).request("pi-1"))
    found = ask(AuthorityAddress(authority.url), request, ca=authority.fleet.ca_pem, shown=None, timeout_s=10)
    assert "neither a token nor a certificate" in found.reason


def test_a_certificate_that_has_run_out_renews_nothing(tmp_path: Path) -> None:
    clock = Clock()
    clock.now_s -= 100 * DAY_S
    with served(tmp_path / "fleet", clock=clock) as authority:
        folder = authority.device("pi-1", tmp_path)
    with served(tmp_path / "fleet") as authority:
        with pytest.raises(UsageError, match=r"the certificate ended on .*; enrol with a new token"):
            authority.enroll("pi-1", folder)
        with pytest.raises(UsageError, match=r"does not take our certificate \(.*expired\)"):
            renewal(authority, folder, name="pi-1", key=folder)


# ------------------------------------------------------------ by hand


def test_without_a_server(authority: Served, tmp_path: Path) -> None:
    write_request("pi-9", folder=tmp_path / "pi-9", csr=tmp_path / "pi-9.csr")
    issue_device(authority.fleet, "pi-9", csr=tmp_path / "pi-9.csr", out=tmp_path / "pi-9.pem")
    found = install("pi-9", ca=authority.fleet.ca_pem, folder=tmp_path / "pi-9", cert=tmp_path / "pi-9.pem", clock=authority.fleet.clock)
    assert found.done == "enrolled"
    assert state(authority, "pi-9") == "enrolled"
    assert agents_serial(tmp_path / "pi-9") != serial(tmp_path / "pi-9")
    assert authority.enroll("pi-9", tmp_path / "pi-9").done == "nothing"
    with pytest.raises(UsageError, match="is made out to 'pi-9', not to 'pi-8'"):
        issue_device(authority.fleet, "pi-8", csr=tmp_path / "pi-9.csr", out=tmp_path / "x.pem")
    with pytest.raises(UsageError, match="is for another key"):
        install("pi-9", ca=authority.fleet.ca_pem, folder=tmp_path / "other", cert=tmp_path / "pi-9.pem", clock=authority.fleet.clock)
