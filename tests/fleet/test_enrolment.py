"""What the authority decides, over its real server: first certificates, approval, renewal, keys that change; by a clock that is set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_client.enroll.ask import AuthorityAddress, ask
from edge_client.enroll.enroll import install, write_request
from edge_client.enroll.identity import Identity
from fleet.authority import DEVICE_DAYS
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
    old = serial(authority.device("pi-1", tmp_path))
    authority.token("pi-1", tmp_path / "token")
    authority.enroll("pi-1", tmp_path / "new card", token=tmp_path / "token")
    assert revoked(authority) == {old}
    assert authority.enroll("pi-1", tmp_path / "new card").done == "nothing"


def test_a_revoked_device_comes_back_with_a_new_token_alone(authority: Served, tmp_path: Path) -> None:
    old = serial(authority.device("pi-1", tmp_path))
    used = authority.token("pi-1", tmp_path / "token")
    revoke_device(authority.fleet, "pi-1", broker=None)
    assert state(authority, "pi-1") == "revoked"
    with pytest.raises(UsageError, match="this token is not known"):
        authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token")
    assert authority.token("pi-1", tmp_path / "token") != used
    assert authority.enroll("pi-1", tmp_path / "pi-1", token=tmp_path / "token").done == "enrolled"
    assert serial(tmp_path / "pi-1") not in revoked(authority)
    assert revoked(authority) == {old}


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
    assert authority.enroll("pi-9", tmp_path / "pi-9").done == "nothing"
    with pytest.raises(UsageError, match="is made out to 'pi-9', not to 'pi-8'"):
        issue_device(authority.fleet, "pi-8", csr=tmp_path / "pi-9.csr", out=tmp_path / "x.pem")
    with pytest.raises(UsageError, match="is for another key"):
        install("pi-9", ca=authority.fleet.ca_pem, folder=tmp_path / "other", cert=tmp_path / "pi-9.pem", clock=authority.fleet.clock)
