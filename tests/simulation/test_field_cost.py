"""Cost mode tells what train mode tells of time, bytes and joules, and goes on doing so with thousands of clients."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest

from cutlayer import main
from edge_client.data import open_source
from simulation.field.configure import configured
from simulation.field.cost import MemoryStore, cost_maker
from simulation.field.link import Link
from simulation.field.presets import load_device, load_link
from simulation.field.result import FieldResult
from simulation.field.shares import shares_of, splits_of
from simulation.field.simulate import Setting, simulate
from simulation.field.sizes import Messages, Sizes, sampled_sizes
from simulation.field.weather import outages
from simulation.field.world import World
from tests.e2e.field import small_run
from wire.alignment import AlignConfig
from wire.errors import UsageError
from wire.frames import Mode
from wire.runfile import Run, load_run
from wire.store import Checkpoint, Store

BATCH = 16


@pytest.fixture(scope="module")
def run_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_run(tmp_path_factory.mktemp("cost"), samples=56, test_samples=24, checkpoint_every=7)


def setting(link: Link | str = "gprs") -> Setting:
    found = load_link(link) if isinstance(link, str) else link
    return Setting(link=found, device=load_device("pi-4"), server_device=load_device("server"))


def both(run_file: Path, folder: Path, link: Link | str = "gprs", *, epochs: int = 2, **changes: Any) -> tuple[FieldResult, FieldResult]:
    """The same run, trained and reckoned."""
    run = dataclasses.replace(load_run(run_file), epochs=epochs)
    trained = simulate(configured(run, changes, state=folder / "train"), setting(link))
    reckoned = simulate(configured(run, changes, state=folder / "cost"), setting(link), mode="cost")
    assert trained.finished, trained.why
    assert reckoned.finished, reckoned.why
    assert (reckoned.mode, reckoned.history, reckoned.metrics) == ("cost", [], {})
    assert (reckoned.applied, reckoned.voided) == (trained.applied, trained.voided)
    assert reckoned.samples == trained.samples
    return trained, reckoned


# ------------------------------------------------------------ as train mode


@pytest.mark.parametrize(
    "changes",
    [
        {"schedule": "relay", "codec": "int8"},
        {"schedule": "independent", "codec": "fp32", "in_flight": 2},
        {"schedule": "splitfed-v2", "codec": "int8"},
    ],
    ids=lambda changes: str(changes["schedule"]),
)
def test_a_run_that_was_sampled_whole_costs_to_the_byte_what_it_costs_trained(changes: Any, run_file: Path, tmp_path: Path) -> None:
    trained, reckoned = both(run_file, tmp_path, epochs=1, **changes)
    told = [
        [(party.bytes_up, party.bytes_down, party.line_bytes_up, party.applied, party.spent_s) for party in result.parties]
        for result in (trained, reckoned)
    ]
    assert told[0] == told[1]
    assert (trained.time_s, trained.joules) == (reckoned.time_s, reckoned.joules)


@pytest.mark.parametrize(
    ("changes", "share"),
    [
        ({"schedule": "splitfed-v1", "codec": "int8", "clients": 3}, 0.001),
        ({"schedule": "independent", "codec": "int8", "clients": 4}, 0.001),
        ({"schedule": "relay", "codec": "lowbit", "clients": 3}, 0.04),
    ],
    ids=["splitfed-v1", "independent", "lowbit"],
)
def test_a_run_of_which_a_part_was_sampled_costs_nearly_the_same(changes: Any, share: float, run_file: Path, tmp_path: Path) -> None:
    trained, reckoned = both(run_file, tmp_path, **changes)
    for key in ("bytes_up", "bytes_down", "line_bytes_up", "line_bytes_down", "joules", "time_s"):
        assert getattr(reckoned, key) == pytest.approx(getattr(trained, key), rel=share), key


def test_clients_that_are_cut_off_join_again(run_file: Path, tmp_path: Path) -> None:
    cut = dataclasses.replace(load_link("edge"), weather=outages([(9.0, 400.0)]))
    trained, reckoned = both(run_file, tmp_path, cut, schedule="independent")
    assert all(party.connections == 2 for party in reckoned.parties)
    assert reckoned.time_s == pytest.approx(trained.time_s, rel=0.01)


def test_whole_networks_and_sealed_hand_overs_cross_with_their_size(run_file: Path, tmp_path: Path) -> None:
    text = run_file.read_text()
    whole = run_file.with_name("whole.toml")
    whole.write_text(
        text.replace('schedule = "relay"', 'schedule = "fedavg"').replace("cut = [", "cut = []\nsegments = [").replace("pool1", "all")
    )
    trained, reckoned = both(whole, tmp_path / "whole", epochs=1)
    assert reckoned.bytes_up == pytest.approx(trained.bytes_up, rel=0.01), "but for the counts of evaluations"
    sealed = run_file.with_name("sealed.toml")
    sealed.write_text(text.replace('schedule = "relay"', 'schedule = "relay"\nhand_over = "peer"'))
    trained, reckoned = both(sealed, tmp_path / "sealed", epochs=1)
    assert (reckoned.bytes_up, reckoned.bytes_down) == (trained.bytes_up, trained.bytes_down)


def test_the_same_seed_gives_the_same_result(run_file: Path, tmp_path: Path) -> None:
    first, second, other = (
        simulate(
            configured(load_run(run_file), {"clients": 5, "seed": seed}, state=tmp_path / name), setting(), mode="cost", samples=40
        ).plain()
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert {**first, "wall_s": 0} == {**second, "wall_s": 0}
    assert other["time_s"] != first["time_s"]


# ------------------------------------------------------------ thousands of clients


@pytest.fixture(scope="module")
def sizes(run_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Sizes:
    return sampled_sizes(load_run(run_file), tmp_path_factory.mktemp("sample"), samples=4 * BATCH)


def test_sizes_are_sampled_anew_where_an_earlier_attempt_has_left_its_state(run_file: Path, tmp_path: Path) -> None:
    run = configured(load_run(run_file), {}, state=tmp_path)
    first, second = (sampled_sizes(run, tmp_path / "sample", samples=4 * BATCH) for _ in range(2))
    assert second.steps.keys() == first.steps.keys()
    assert second.offers == first.offers


def many(run_file: Path, sizes: Sizes, count: int, *, folder: Path, **changes: Any) -> World:
    """A world that has come to its end."""
    base = dataclasses.replace(load_run(run_file), epochs=1, resend_after_s=600.0)
    run = configured(base, {"clients": count, "schedule": "independent", **changes}, state=folder)
    one = setting()
    maker = cost_maker(run, sizes, samples=4 * BATCH)
    world = World(run, one.link, one.device, one.server_device, maker, lambda time_s, party, event, fields: None)
    world.build()
    world.start()
    while not world.over:
        assert world.clock.step()
    world.close()
    return world


def test_what_happens_for_a_client_does_not_grow_with_their_number(run_file: Path, sizes: Sizes, tmp_path: Path) -> None:
    worlds = {count: many(run_file, sizes, count, folder=tmp_path) for count in (30, 300)}
    events = {count: world.clock.handled / count for count, world in worlds.items()}
    sent = {count: sum(client.driver.traffic.bytes_up for client in world.clients.values()) / count for count, world in worlds.items()}
    assert events[300] < 1.1 * events[30]
    assert sent[300] < 1.02 * sent[30]
    for count, world in worlds.items():
        assert sum(client.driver.traffic.counts["applied"] for client in world.clients.values()) == 4 * count
    assert [path.name for path in tmp_path.iterdir()] == [], "nothing is written for a client"


def test_clients_without_data_are_reckoned_by_the_command(run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["simulate", str(run_file), "--out", str(tmp_path / "out"), *map(str, arguments)])
        return code, *capsys.readouterr()

    many = ("--mode", "cost", "--clients", "400", "--link", "3g")  # of 355 test samples
    code, out, err = said(*many, "--samples", "16", "--epochs", "1", "--json")
    assert code == 0, err
    (cell,) = json.loads(out.splitlines()[-1])["cells"]
    assert (cell["mode"], cell["clients"], cell["applied"], cell["finished"]) == ("cost", 400, 400, True)
    assert (tmp_path / "out" / "report.html").is_file()
    for arguments, words in (
        (many, "has no test samples: 355 are shared out to 400 clients; name fewer --clients, or with --mode cost how many --samples"),
        (("--samples", "16"), "--samples is for --mode cost"),
    ):
        code, out, err = said(*arguments)
        assert (code, out, err.splitlines()[-1].count(words)) == (2, "", 1), err


def test_records_that_must_be_aligned_are_not_reckoned(run_file: Path, tmp_path: Path) -> None:
    run = load_run(run_file)
    aligned = dataclasses.replace(run, align=AlignConfig())
    with pytest.raises(UsageError, match="`--mode train`"):
        sampled_sizes(aligned, tmp_path)


# ------------------------------------------------------------ shares, sizes, stores


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"limit": 40},
        {"validation_fraction": 0.3},
        {"drop_last": True, "limit": 39},
        {"partition": "dirichlet:0.5"},
        {"test": {"limit": 3}},
    ],
    ids=str,
)
def test_shares_are_those_of_the_data(changes: dict[str, Any], run_file: Path) -> None:
    run = load_run(run_file)
    data = {key: value for key, value in run.data.items() if key != "limit"}
    splits: tuple[Literal["validation", "test"], ...] = ("validation", "test") if "validation_fraction" in changes else ("test",)
    run = dataclasses.replace(run, data=data | changes, evaluate=dataclasses.replace(run.evaluate, splits=splits))
    run = configured(run, {"clients": 7}, state=run_file.parent)
    found = shares_of(run, min_batch=2)
    for lane, client in enumerate(run.clients):
        sources: dict[str, Any] = {split: _source(run, client.name, split, lane) for split in splits_of(run)}
        assert found[lane].samples == {split: source.samples for split, source in sources.items()}
        assert found[lane].batches == {split: source.batches for split, source in sources.items()}
        batches = found[lane].batches["train"]
        rows = [len(sources["train"].batch(step // batches, step % batches).inputs[0]) for step in range(2 * batches)]
        assert [found[lane].rows(Mode.TRAIN, step) for step in range(2 * batches)] == rows
        evaluated = [len(sources[split].batch(0, at).inputs[0]) for split in splits for at in range(sources[split].batches)]
        assert [found[lane].rows(Mode.EVAL, step) for step in range(2 * len(evaluated))] == 2 * evaluated


def _source(run: Run, client: str, split: Any, lane: int) -> Any:
    return open_source(
        run.data_of(client), split, seed=run.seed, segment="bottom", lane=lane, batch_size=BATCH, base_dir=run.base, min_batch=2
    )


def test_messages_of_a_size_that_was_not_sampled_are_as_long_as_their_samples_make_them() -> None:
    found = Messages({(0, 0): (16, 1016), (0, 1): (16, 1020), (0, 2): (4, 252), (1, 0): (16, 1018), (1, 1): (16, 1018), (1, 2): (4, 254)})
    assert [found.bytes_of(16, lane, step) for lane in (0, 1) for step in (0, 1)] == [1016, 1020, 1018, 1018]
    assert [found.bytes_of(4, lane, 2) for lane in (0, 1)] == [252, 254]
    assert found.bytes_of(8, 0, 0) == pytest.approx(1016 - 8 * (1018 - 253) / 12, abs=1)
    assert Messages({(0, 0): (16, 1600)}).bytes_of(4, 3, 9) == 400


def test_a_store_in_memory_keeps_what_one_on_disk_keeps(tmp_path: Path) -> None:
    stores: Mapping[str, Any] = {"disk": Store(tmp_path / "party", digest="d"), "memory": MemoryStore(tmp_path)}
    told: dict[str, list[Any]] = {name: [] for name in stores}
    for name, store in stores.items():
        for number, id in enumerate((0, 1, 2, 2, 7)):
            store.save(Checkpoint(id=id, segments={}, program={"position": number}))
            told[name].append((store.checkpoints(), store.programs()))
        told[name].append(store.load(2).program)
        told[name].append(store.checkpoints())
        store.save(Checkpoint(id=3, segments={}))
        told[name] += [store.checkpoints(), store.programs(), store.load(3).program, store.epoch, store.finished]
        store.close()
    assert told["memory"] == told["disk"]
