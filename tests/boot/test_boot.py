"""Two boards from the card to the last step of their run, one of them with its power cut again and again. `make test-boot` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.boot.card import Card
from tests.boot.desk import Desk, ServerField, cutlayer
from tests.boot.story import Story
from tests.fleet.fleets import until

pytestmark = [pytest.mark.boot, pytest.mark.timeout(7200)]
HOME = "/var/lib/cutlayer"
INSTALL_LOG = "/var/log/cutlayer-install.log"
STEPS = {"board-1": 20, "board-2": 2400}  # the second one's are enough for an update meanwhile
PATIENCE_S = 1800.0
CUTS = (0.4, 0.8)  # of the time that the first board's installation took


def flashed(desk: Desk, image: Path, device: str, title: str) -> tuple[Story, Path]:
    """The board with its card in, not switched on yet; and its run file."""
    run = desk.run_file(device, steps=STEPS[device])
    folder = desk.folder / device
    card = Card(desk.flash(image, device), folder, log=folder / "console.log")
    card.write({f"{HOME}/data/digits.npz": desk.folder / "data/digits.npz"})
    token = (desk.fleet / f"tokens/{device}.token").read_bytes().strip()
    assert card.boot_holds(token)
    return Story(title, card, token), run


def first_start(story: Story) -> None:
    """What the published image does by itself, before ours."""
    story.power_on("power on, for the first time")
    story.see("firstboot: done")
    story.ended("restarts")
    assert " systemd.run=/boot/firmware/firstrun.sh " in story.card.cmdline()


def installed(story: Story) -> None:
    """The installation has ended and left no secret on the boot partition."""
    assert story.card.boot_files() == ["cmdline.txt", "config.txt", "initramfs8", "issue.txt", "kernel8.img"]
    assert "systemd.run" not in story.card.cmdline()
    assert not story.card.boot_holds(story.token)
    assert b"cutlayer-install: done" in story.card.read(INSTALL_LOG)


def await_steps(story: Story, server: ServerField, count: int) -> None:
    found = until(lambda: done if (done := server.steps()) >= count else None, f"step {count}", patience_s=PATIENCE_S)
    story.say(f"steps that the server has done: {found}")


def trained(story: Story, server: ServerField) -> None:
    """The run ends on both sides, with each step applied exactly once."""
    server.finish(PATIENCE_S)
    story.see("the run is finished")
    story.cut("after the run, instead of a shutdown")
    device = server.run.clients[0].name
    steps = story.card.ledger(f"{HOME}/state/{device}/{device}/ledger.sqlite")
    assert steps == server.ledger(server.run.server.name)
    assert [step for _, _, step, _, applied in steps if applied] == list(range(STEPS[device]))
    story.say(f"the ledgers of device and server: the same {len(steps)} steps, each applied once")
    story.done = True


def test_a_board_boots_enrols_and_trains(image: Path, desk: Desk, stories: list[Story]) -> None:
    story, run = flashed(desk, image, "board-1", "A board that is left alone")
    stories.append(story)
    try:
        with desk.authority(), desk.broker(run), desk.server(run) as server:
            first_start(story)
            begun_s = story.power_on()
            ended_s = story.ended("firstrun.sh has ended: restarts")
            story.marks["installed_s"] = ended_s - begun_s
            installed(story)
            story.power_on()
            story.see("is enrolled, until")
            await_steps(story, server, 1)
            await_steps(story, server, STEPS["board-1"])
            trained(story, server)
    finally:
        story.card.machine.close()


def test_a_power_cut_only_delays(image: Path, desk: Desk, stories: list[Story]) -> None:
    """In the installation, while enrolment waits for the operator, in training, and in an update of the client's code."""
    story, run = flashed(desk, image, "board-2", "A board whose power is cut")
    whole_s = stories[0].marks["installed_s"]
    stories.append(story)
    try:
        with desk.authority("--approve"), desk.broker(run), desk.server(run) as server:
            first_start(story)
            cut_in_installation(story, whole_s)
            cut_in_enrolment(story)
            cut_in_training(story, server)
            cut_in_update(story, desk)
            trained(story, server)
    finally:
        story.card.machine.close()


def cut_in_installation(story: Story, whole_s: float) -> None:
    for share in CUTS:
        story.power_on()
        with pytest.raises(AssertionError, match="did not say"):
            story.card.machine.wait_for("reboot: Restarting system", share * whole_s)
        story.cut(f"{share * whole_s:.0f} s after the start, in the installation")
        said = story.card.read(INSTALL_LOG).replace(b"\0", b"").decode(errors="replace").splitlines() or ["nothing yet"]
        story.say(f"    the last line of its log on the card: {said[-1]}")
    story.power_on()
    story.ended("firstrun.sh has ended: restarts")
    installed(story)


def cut_in_enrolment(story: Story) -> None:
    story.power_on()
    story.see("waits for `cutlayer device approve")
    story.cut("while it waits to be let in")
    story.power_on()
    story.see("waits for `cutlayer device approve")
    device = story.card.image.stem
    fleet = story.card.image.parent / "fleet"
    story.say(f"operator: {cutlayer('device', 'approve', device, '--fleet', fleet).strip()}")
    story.see("is enrolled, until")


def cut_in_training(story: Story, server: ServerField) -> None:
    await_steps(story, server, 20)
    story.cut("in training")
    story.power_on()
    await_steps(story, server, 40)


def cut_in_update(story: Story, desk: Desk) -> None:
    """The client's own wheel and numpy's come as a release: the power goes while they come, and again while it is on trial."""
    with desk.deploying(story.card.image.stem, "cutlayer", "numpy") as deploy:
        story.say("operator: cutlayer deploy, with new code")
        story.see("agent: release 1: offered")
        story.wait(3.0)
        story.cut("while the release's files come")
        story.power_on()
        story.see("agent: release 1: on trial")
        story.cut("while the release is on trial")
        story.power_on()
        story.see("agent: release 1: healthy")
        assert deploy.wait(PATIENCE_S) == 0
    said = (desk.folder / "deploy.log").read_text().splitlines()
    story.say(f"operator: {said[-1]}")
