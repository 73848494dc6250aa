"""`cutlayer flash --run RUN.toml`, from a whole run: what is missing is made on the way, and nothing is used twice."""

from __future__ import annotations

import io
import shutil
import tarfile
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

import cutlayer
from fleet.enrolment import sign, token_digest
from fleet.flash.ready import check_place
from fleet.state import Fleet
from tests.fleet.conftest import Desk
from tests.fleet.fleets import DAY_S, Clock
from tests.fleet.images import mtools
from wire.errors import UsageError
from wire.manifest import load_manifest
from wire.runfile import load_run


@pytest.fixture
def words(desk: Desk, bookworm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An operator's folder with a run, an authority and an image, and nothing else: no slice, no bundle, no token."""
    text = (desk.folder / "run.toml").read_text()
    table = tomllib.loads(text)
    assert "broker" not in table
    (tmp_path / "run.toml").write_text(text + '\n[broker]\nurl = "mqtts://broker.example:8883"\n')
    for name in desk.folder.iterdir():
        if name.suffix in (".npz", ".csv", ".py") or name.name == "data":
            (shutil.copytree if name.is_dir() else shutil.copy)(name, tmp_path / name.name)
    monkeypatch.chdir(tmp_path)
    assert cutlayer.main(["ca", "init"]) == 0
    return [
        "flash",
        "--image",
        str(bookworm),
        "--device",
        "board-1",
        "--run",
        "run.toml",
        "--out",
        "card.img",
        "--wheels",
        str(desk.folder / "wheels"),
    ]


def token_on(image: Path) -> bytes:
    return mtools("mtype", image, "::cutlayer-token")


def test_a_card_from_a_run_and_an_authority(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main(words) == 0, capsys.readouterr().err
    with tarfile.open(fileobj=io.BytesIO(mtools("mtype", tmp_path / "card.img", "::cutlayer-payload.tar"))) as tar:
        held = {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]
    run = tomllib.loads(held["run.toml"].decode())
    assert (run["slice"]["party"], run["broker"]["url"]) == ("board-1", "mqtts://broker.example:8883")
    assert any(name.startswith("bundle/") and name.endswith("manifest.json") for name in held)
    fleet = Fleet(folder=tmp_path / "fleet")
    with fleet.registry() as registry:
        row = registry.device("board-1")
    assert row.token is not None
    assert row.token.key is None
    assert token_on(tmp_path / "card.img").decode().strip() == (tmp_path / "fleet/tokens/board-1.token").read_text().strip()


def test_a_bundle_of_an_earlier_run_file_is_not_taken(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is exported anew where flash exports; where one was named, that is told, as `deploy` does."""
    assert cutlayer.main(words) == 0
    run = tmp_path / "run.toml"
    manifest = next(load_run(run).bundles.glob("*/manifest.json"))
    before = load_manifest(manifest.read_text(), where="")
    run.write_text(run.read_text().replace(f"lr = {before.optimizer.lr}", f"lr = {before.optimizer.lr / 2}"))
    capsys.readouterr()
    given = ["--bundle", str(manifest.parents[1])]
    for more in ([*words, *given], ["deploy", given[1], "--run", "run.toml", "--to", "board-1"]):
        assert cutlayer.main(more) == 2
        assert "was exported for" in capsys.readouterr().err
    assert cutlayer.main(words) == 0, capsys.readouterr().err
    assert load_manifest(manifest.read_text(), where="").optimizer.lr == before.optimizer.lr / 2


def test_a_token_serves_until_it_is_used(words: list[str], tmp_path: Path) -> None:
    assert cutlayer.main(words) == 0
    first = token_on(tmp_path / "card.img")
    assert cutlayer.main(words) == 0
    assert token_on(tmp_path / "card.img") == first, "nobody has used it"
    fleet = Fleet(folder=tmp_path / "fleet")
    with fleet.registry() as registry, registry.changing():
        registry.claim(token_digest(first.decode().strip()), "somebody's key")
    assert cutlayer.main(words) == 0
    assert token_on(tmp_path / "card.img") != first


def test_a_device_that_is_enrolled_is_replaced_only_where_that_is_said(tmp_path: Path) -> None:
    clock = Clock()
    fleet = Fleet(folder=tmp_path / "fleet", clock=clock)
    check_place(fleet, "c0", replace=False)  # nobody is registered here
    fleet.create("test")
    check_place(fleet, "c0", replace=False)
    with fleet.registry() as registry:
        registry.add("c0", token_digest=b"c0", expires_s=clock.now_s + DAY_S)
        check_place(fleet, "c0", replace=False)
        with registry.changing():
            row = sign("c0", ec.generate_private_key(ec.SECP256R1()).public_key(), registry, fleet.authority())
        with pytest.raises(UsageError, match=rf"`c0` is enrolled, until 20\d\d-\d\d-\d\d, with the key {row.key[:16]}; .* say --replace"):
            check_place(fleet, "c0", replace=False)
        check_place(fleet, "c0", replace=True)
        clock.now_s = row.ends_s
        check_place(fleet, "c0", replace=False)
        clock.now_s -= 1.0
        registry.revoke("c0")
        check_place(fleet, "c0", replace=False)


def test_a_revoked_device_is_not_let_in_by_the_way(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main(words) == 0
    assert cutlayer.main(["device", "revoke", "board-1"]) == 0
    capsys.readouterr()
    assert cutlayer.main(words) == 2
    assert capsys.readouterr().err == "cutlayer: error: `board-1` is revoked; `cutlayer device add board-1` lets it in again\n"


def test_who_is_no_client_of_the_run_gets_no_card(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words[words.index("board-1")] = "somebody"
    assert cutlayer.main(words) == 2
    assert "somebody" in capsys.readouterr().err
    assert not (tmp_path / "fleet/tokens/somebody.token").exists()


def test_a_size_that_is_none(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cutlayer.main([*words, "--memory", "lots"]) == 2
    assert "--memory 'lots' is no size" in capsys.readouterr().err
