"""The ``cutlayer`` command: parse a verb, import its room, call it. Each verb imports its room only when it runs, because a device has
the base install only, and `cutlayer client` must work there.

Rooms raise ``CutlayerError``; the boundary at the end of this file is the only place that turns errors into a line and an exit code.
"""

from __future__ import annotations

import argparse
import errno
import importlib.metadata
import importlib.util
import os
import re
import select
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from wire.errors import CutlayerError, StorageError, UsageError, exit_code
from wire.optim import SGD, Adam, AdamW, Optimizer
from wire.parse import parse

if TYPE_CHECKING:
    from _typeshed import SupportsWrite

    from wire.runfile import Run

__all__ = ["main"]

_EPILOG = """\
exit codes:
  0    done
  1    the run failed for a reason outside this command: the peer, the line; of `doctor`: a check failed; of `deploy`: not every device
       runs the release
  2    something you can mend: an option, the run file, a path, the data, a missing extra, a full disk, a broker that refuses
  70   a bug in cutlayer, with its traceback
  130  interrupted (Ctrl-C); start the same command again and the run goes on
  141  whoever read the output has gone
"""

# What a verb cannot start without: the extra, and the modules that it brings.
_NEEDS = {
    "demo": ("simulation", ("torch", "torchmetrics", "onnx", "iotcore", "rich", "sklearn", "tomli_w")),
    "run": ("simulation", ("torch", "torchmetrics", "onnx", "iotcore", "rich", "sklearn")),
    "serve": ("server", ("torch", "torchmetrics", "onnx")),
    "export": ("export", ("torch", "onnx")),
    "slice": ("export", ("torch", "tomli_w")),
    "assemble": ("export", ("torch", "onnx")),
    "graph": ("simulation", ("torch", "rich")),
    "simulate": ("simulation", ("torch", "torchmetrics", "onnx", "rich", "sklearn", "matplotlib", "jinja2", "markupsafe")),
    "plan": ("simulation", ("torch", "torchmetrics", "onnx", "rich", "sklearn")),
    "flash": ("fleet", ("tomli_w",)),
    "deploy": ("fleet", ("tomli_w",)),
}
# What a verb may find missing on its way.
_EXTRA_OF = {"PIL": "images", "iotcore": "server"}

_SYSTEM_REFUSALS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another folder",
    errno.EACCES: "permission denied; check its owner and mode",
    errno.EPERM: "not permitted; check its owner and mode",
    errno.ENOENT: "no such file or folder; check the path",
    errno.ENOTDIR: "a part of the path is not a folder; check the path",
    errno.EISDIR: "this is a folder; name a file",
    errno.EEXIST: "it exists already; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ELOOP: "the symbolic links go in a circle; check the path",
    errno.EIO: "the disk failed to read or write; check the disk",
    errno.EFBIG: "the file is larger than the file system allows",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
    errno.EADDRINUSE: "the port is in use; choose another one",
    errno.EADDRNOTAVAIL: "this computer has no such address; choose another host",
}


# ------------------------------------------------------------------ verbs: one function each, options in, the room does it


def _demo(args: argparse.Namespace) -> None:
    from simulation.demo import run_demo

    run_demo(
        dataset=args.dataset,
        data_dir=args.data_dir,
        epochs=args.epochs,
        clients=args.clients,
        codec=args.codec,
        json=args.json,
        broker=args.broker,
        seed=args.seed,
        keep=args.keep,
    )


def _run(args: argparse.Namespace) -> None:
    from simulation.run import run_file

    for path in args.run_files:
        run_file(path, json=args.json)


def _serve(args: argparse.Namespace) -> None:
    from export.prepare import build_segments
    from server.process import serve_run
    from wire.runfile import load_run

    run = load_run(args.run_file).with_broker(args.broker)
    serve_run(run, build_segments(run), party=args.party, predict=args.predict, log=args.log)


def _client(args: argparse.Namespace) -> None:
    from edge_client.process import run_client

    run_client(args.run_file, party=args.party, bundle=args.bundle, broker=args.broker, engine=args.engine, log=args.log)


def _predict(args: argparse.Namespace) -> None:
    from edge_client.process import run_predict

    run_predict(args.run_file, party=args.party, bundle=args.bundle, split=args.split, out=args.out, broker=args.broker)


def _slice(args: argparse.Namespace) -> None:
    from export.slicing import write_slice

    write_slice(args.run_file, party=args.party, out=args.out)


def _key(args: argparse.Namespace) -> None:
    from edge_client.key import public_key

    print(public_key(args.run_file, party=args.party))


def _export(args: argparse.Namespace) -> None:
    _check_export(args)
    if args.run_file is not None:
        from export.prepare import prepare

        prepare(args.run_file, out=args.out, engines=args.engines, ort_training_python=args.ort_training_python)
        return
    from export.prepare import prepare_model

    prepare_model(
        args.model,
        cut=args.cut,
        out=args.out,
        input_shape=args.input_shape,
        optimizer=args.optimizer,
        engines=args.engines,
        ort_training_python=args.ort_training_python,
    )


def _check_export(args: argparse.Namespace) -> None:
    by_model = [f"--{name.replace('_', '-')}" for name in ("model", "cut", "input_shape", "optimizer") if getattr(args, name) is not None]
    if args.run_file is None and (args.model is None or args.cut is None):
        raise UsageError("`cutlayer export` needs a run file, or --model my_model.py:build with --cut NAME")
    if args.run_file is not None and by_model:
        raise UsageError(f"the run file says already what {by_model[0]} would say; leave out one of the two")
    if ("ort-training" in args.engines) is not (args.ort_training_python is not None):
        raise UsageError("--engines stock,ort-training and --ort-training-python PATH go together; give both or neither")


def _assemble(args: argparse.Namespace) -> None:
    from export.assemble import assemble

    assemble(args.run_file, out=args.out)


def _graph(args: argparse.Namespace) -> None:
    from simulation.picture import show_run

    show_run(args.run_file, svg=args.svg, json=args.json)


def _options(args: argparse.Namespace) -> dict[str, Any]:
    """Of a verb whose room takes them by the names that they have on the command line."""
    return {key: value for key, value in vars(args).items() if key not in ("verb", "call")}


def _simulate(args: argparse.Namespace) -> None:
    from simulation.field.verb import run_simulate

    run_simulate(**_options(args))


def _plan(args: argparse.Namespace) -> None:
    from simulation.plan.plan import run_plan

    run_plan(**_options(args))


def _flash(args: argparse.Namespace) -> None:
    from fleet.flash.verb import FlashOptions, run_flash

    run_flash(FlashOptions(**_options(args)))


def _deploy(args: argparse.Namespace) -> None:
    from fleet.deploy.verb import DeployOptions, run_deploy

    run_deploy(DeployOptions(**_options(args)), slicer_of=_slicer_of)


def _slicer_of(run: Run) -> Callable[[str, Path], None]:
    """Writes the slice of a party; the network is built once for all of them."""
    _require("deploy", *_NEEDS["slice"])
    from export.prepare import build_segments
    from export.slicing import write_slice_of

    segments = build_segments(run)
    return lambda party, out: write_slice_of(run, party, segments, out)


def _devices(args: argparse.Namespace) -> None:
    from fleet.deploy.devices import run_devices
    from fleet.state import Fleet

    run_devices(Fleet(folder=args.fleet), args.names, broker=args.broker, wait_s=args.wait_s, as_json=args.json)


def _halt(args: argparse.Namespace) -> None:
    from wire.requests import ask
    from wire.runfile import load_run

    print(ask(load_run(args.run_file), args.verb, timeout_s=args.timeout_s))


def _broker(args: argparse.Namespace) -> None:
    from server.broker import run_broker

    run_broker(host=args.host, port=args.port, engine=args.engine)


def _doctor(args: argparse.Namespace) -> None:
    from edge_client.doctor import DeviceDoctor, run_doctor

    doctor = DeviceDoctor(
        run_file=args.run_file, party=args.party, bundle=args.bundle, broker=args.broker, batch=args.batch, timeout_s=args.timeout_s
    )
    run_doctor(doctor, json=args.json)


def _ca(args: argparse.Namespace) -> None:
    from fleet import verbs
    from fleet.state import Fleet

    fleet = Fleet(folder=args.fleet)
    if args.act == "init":
        verbs.init_authority(fleet, name=args.name)
    else:
        verbs.serve_authority(fleet, host=args.host, port=args.port, names=args.name, approve=args.approve)


def _device(args: argparse.Namespace) -> None:
    from fleet import verbs
    from fleet.state import Fleet

    fleet = Fleet(folder=args.fleet)
    if args.act == "add":
        verbs.add_device(fleet, args.device, hours=args.hours, out=args.out, group=args.group)
    elif args.act == "group":
        verbs.group_devices(fleet, args.devices, group=args.group)
    elif args.act == "list":
        verbs.list_devices(fleet, as_json=args.json)
    elif args.act == "revoke":
        verbs.revoke_device(fleet, args.device, broker=args.broker)
    elif args.act == "approve":
        verbs.approve_device(fleet, args.device)
    else:
        verbs.issue_device(fleet, args.device, csr=args.csr, out=args.out)


def _broker_config(args: argparse.Namespace) -> None:
    from fleet.broker_config import write_broker_config
    from fleet.state import Fleet

    write_broker_config(
        Fleet(folder=args.fleet),
        args.run_files,
        out=args.out,
        at=args.at,
        names=args.name,
        bind=args.bind,
        mosquitto=args.mosquitto,
        acl_plugin=args.acl_plugin,
        operator=args.operator,
        audit=args.audit,
    )


def _enroll(args: argparse.Namespace) -> None:
    from edge_client.enroll.options import run_enroll

    run_enroll(args)


# ------------------------------------------------------------------ the command line


class _Parser(argparse.ArgumentParser):
    """argparse whose complaints go through the error boundary: one line, exit code 2."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; `{self.prog} --help` lists what there is")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        (file or sys.stderr).write(message)  # argparse's own keeps quiet about output that could not be written


def _count(text: str) -> int:
    number = _whole(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is below 1")
    return number


def _whole(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 0 or more")
    return int(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", text) or not float(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return float(text)


def _port(text: str) -> int:
    number = _whole(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError(f"{text} is not a port, 1 to 65535")
    return number


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"[1-9][0-9]{0,8}(,[1-9][0-9]{0,8})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape of one sample like 1,28,28")
    return tuple(int(size) for size in text.split(","))


def _demo_broker(text: str) -> str:
    if text not in ("embedded", "mosquitto") and not re.match(r"mqtts?://.", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not embedded, mosquitto or an address like mqtt://192.168.0.2:1883")
    return text


def _codec(text: str) -> str:
    from wire.codecs import parse_codec

    try:
        for each in text.split("/", 1):
            parse_codec(each)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


def _engines(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if names not in (("stock",), ("stock", "ort-training")):
        raise argparse.ArgumentTypeError(f"{text!r} is not stock or stock,ort-training")
    return names


def _optimizer(text: str) -> Optimizer:
    """``sgd,lr=0.1,momentum=0.9``: a kind, then keys as in the run file's ``[optimizer]``."""
    kinds = {"sgd": SGD, "adam": Adam, "adamw": AdamW}
    kind, *rows = re.split(r",(?![^\[]*\])", text)
    if kind not in kinds:
        raise argparse.ArgumentTypeError(f"{kind!r} is not an optimizer; it must be one of {', '.join(kinds)}")
    try:
        values = tomllib.loads("\n".join(rows))
    except tomllib.TOMLDecodeError as exc:
        raise argparse.ArgumentTypeError(f"{text!r} is not written like sgd,lr=0.1,momentum=0.9") from exc
    try:
        found: Optimizer = parse(kinds[kind], {**values, "kind": kind}, where="", error=UsageError)
    except UsageError as exc:
        raise argparse.ArgumentTypeError(f"{text!r}: {exc}") from exc
    return found


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="cutlayer",
        description="Train one network that is cut: the bottom on devices, as ONNX; the top on a server, in PyTorch; MQTT between them.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"cutlayer {_version()}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, title="verbs")
    _add_demo(verbs)
    _add_parties(verbs)
    _add_files(verbs)
    _add_doctor(verbs)
    _add_field(verbs)
    broker = _verb(verbs, "broker", _broker, "start an MQTT broker and say how to connect")
    broker.add_argument("--host", default="127.0.0.1", help="address to listen on; other computers reach 0.0.0.0 (default %(default)s)")
    broker.add_argument("--port", type=_port, default=1883, help="default %(default)s")
    broker.add_argument("--engine", choices=("auto", "mosquitto", "embedded"), default="auto", help="auto: mosquitto where it is installed")
    _add_fleet(verbs, broker)
    return parser


def _add_demo(verbs: Any) -> None:
    demo = _verb(verbs, "demo", _demo, "train split on this computer, and unsplit, and compare")
    demo.add_argument("--dataset", choices=("digits", "fashion-mnist"), default="digits", help="default %(default)s")
    demo.add_argument("--data-dir", type=Path, metavar="DIR", help="where the data set's files lie or are to be put")
    demo.add_argument("--epochs", type=_count, metavar="N")
    demo.add_argument("--clients", type=_count, default=2, metavar="N", help="default %(default)s")
    demo.add_argument(
        "--codec",
        type=_codec,
        metavar="NAME",
        help="how tensors cross the cut, like int8 or topk:keep=0.05, or forward/backward, like lowbit/fp16 (default int8)",
    )
    demo.add_argument(
        "--broker", type=_demo_broker, default="embedded", help="embedded, mosquitto, or mqtt://HOST:PORT (default %(default)s)"
    )
    demo.add_argument("--seed", type=_whole, default=0, metavar="N", help="default %(default)s")
    demo.add_argument("--keep", type=Path, metavar="DIR", help="keep run file, bundles and state of the parties in DIR")
    demo.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _add_parties(verbs: Any) -> None:
    run = _verb(verbs, "run", _run, "run every party of a run file on this computer, each as a process")
    run.add_argument("run_files", type=Path, nargs="+", metavar="RUN.toml", help="one, or several one after the other")
    run.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    serve = _verb(verbs, "serve", _serve, "run the server's part of a run", run_file=True)
    serve.add_argument("--party", metavar="NAME", help="which server this is, where the run has several")
    serve.add_argument("--predict", metavar="PARTY", help="do not train: answer `cutlayer predict --party PARTY`")
    client = _verb(verbs, "client", _client, "run a client's part of a run (also: python -m edge_client)", run_file=True)
    predict = _verb(verbs, "predict", _predict, "split inference: a client's part on its own data, the rest on the server", run_file=True)
    key = _verb(verbs, "key", _key, "print a client's public key, for `public_key` in [[clients]]; made where there is none", run_file=True)
    for parser in (client, predict, key):
        parser.add_argument("--party", required=True, metavar="NAME", help="which of the run's clients this is")
    for parser in (client, predict):
        parser.add_argument("--bundle", type=Path, metavar="DIR", help="the device bundle that `cutlayer export` wrote")
    client.add_argument("--engine", choices=("auto", "stock", "ort-training"), help="instead of the run file's for this client")
    slicing = _verb(verbs, "slice", _slice, "write the run file of one party, which names its neighbours and nobody else", run_file=True)
    slicing.add_argument("--party", required=True, metavar="NAME", help="which client or server it is for")
    slicing.add_argument("--out", "-o", required=True, type=Path, metavar="FILE", help="where to write it")
    _add_halts(verbs)
    for parser in (serve, client, predict):
        parser.add_argument("--broker", metavar="URL", help="instead of the run file's, like mqtt://192.168.0.2:1883")
    for parser in (serve, client):
        parser.add_argument("--log", choices=("text", "json"), default="text", help="what to print while running (default %(default)s)")
    predict.add_argument("--split", choices=("validation", "test"), default="test", help="default %(default)s")
    predict.add_argument("--out", type=Path, metavar="FILE", help="write a CSV of id and prediction here instead of to the screen")


def _add_halts(verbs: Any) -> None:
    """Their place is the computer on which the run's coordinator, that is its server, runs."""
    for name, summary in (
        ("pause", "let a run wait at its next checkpoint, with all parties connected, until `cutlayer resume`"),
        ("resume", "let a run that was paused go on"),
        ("drain", "end all parties of a run at its next checkpoint; started again, they go on"),
    ):
        parser = _verb(verbs, name, _halt, summary, run_file=True)
        parser.add_argument("--timeout-s", type=_seconds, default=600.0, metavar="S", help="longest wait for it (default 600)")


def _add_files(verbs: Any) -> None:
    export = _verb(verbs, "export", _export, "cut a model and write the devices' bundles")
    export.add_argument("run_file", type=Path, nargs="?", metavar="RUN.toml", help="export every client segment of this run; or:")
    export.add_argument("--model", metavar="MY_MODEL.py:BUILD", help="a function without arguments that returns a torch.nn.Module")
    export.add_argument("--cut", metavar="NAME", help="the submodule after which to cut")
    export.add_argument("--input-shape", type=_shape, metavar="1,28,28", help="one sample's shape; a usual one where it is left out")
    export.add_argument("--optimizer", type=_optimizer, metavar="sgd,lr=0.1", help="as in the run file: kind, then key=value")
    export.add_argument(
        "--engines", type=_engines, default=("stock",), metavar="NAMES", help="stock (default), or stock,ort-training: for both engines"
    )
    export.add_argument(
        "--ort-training-python", type=Path, metavar="PATH", help="the interpreter of an environment that has onnxruntime-training 1.19.2"
    )
    export.add_argument("--out", type=Path, required=True, metavar="DIR")
    assemble = _verb(verbs, "assemble", _assemble, "put the trained segments together: one PyTorch state, one ONNX file", run_file=True)
    assemble.add_argument("--out", type=Path, required=True, metavar="DIR")
    graph = _verb(verbs, "graph", _graph, "show who holds what in a run, and what crosses between whom", run_file=True)
    graph.add_argument("--svg", type=Path, metavar="FILE", help="write the picture here as well")
    graph.add_argument("--json", action="store_true", help="print one JSON object instead")


def _add_doctor(verbs: Any) -> None:
    doctor = _verb(verbs, "doctor", _doctor, "check whether a computer is fit for its part, and say what to do where it is not")
    doctor.add_argument("--device", action="store_true", required=True, help="check this board: can it be a client?")
    doctor.add_argument(
        "run_file", type=Path, nargs="?", metavar="RUN.toml", help="check for this run: its broker, bundle, batch and state"
    )
    doctor.add_argument("--party", metavar="NAME", help="which of the run's clients this is")
    doctor.add_argument("--bundle", type=Path, metavar="DIR", help="the device bundle that `cutlayer export` wrote")
    doctor.add_argument("--broker", metavar="URL", help="instead of the run file's, like mqtt://192.168.0.2:1883")
    doctor.add_argument("--batch", type=_count, metavar="N", help="samples a step (default: the run file's, or 32)")
    doctor.add_argument("--timeout-s", type=_seconds, default=60.0, metavar="S", help="longest wait of a check (default 60)")
    doctor.add_argument("--json", action="store_true", help="print one JSON object as the last line")


def _add_field(verbs: Any) -> None:
    if importlib.util.find_spec("simulation") is None:  # a board's image has the device's rooms alone
        return
    from simulation.field.options import add_simulate_options
    from simulation.plan.options import ABOUT, add_plan

    simulate = _verb(verbs, "simulate", _simulate, "train a run over a modelled line in virtual time, and report", run_file=True)
    add_simulate_options(simulate, count=_count, codec=_codec)
    add_plan(_verb(verbs, "plan", _plan, ABOUT), count=_count, shape=_shape, codec=_codec)


def _add_fleet(verbs: Any, broker: argparse.ArgumentParser) -> None:
    from edge_client.enroll.options import ABOUT, add_enroll

    add_enroll(_verb(verbs, "enroll", _enroll, ABOUT))
    if importlib.util.find_spec("fleet") is None:  # a board's image has the device's rooms alone
        return
    from fleet.deploy.options import DEPLOY, DEVICES, add_deploy, add_devices
    from fleet.flash.options import ABOUT as FLASH
    from fleet.flash.options import add_flash
    from fleet.options import add_broker_config, add_ca, add_device

    add_ca(_verb(verbs, "ca", _ca, "the fleet's certificate authority: make it, run it"), port=_port)
    add_device(_verb(verbs, "device", _device, "the fleet's devices: add, list, approve, revoke"), hours=_seconds)
    acts = broker.add_subparsers(dest="act", metavar="ACT", title="acts")
    about = "write what a mosquitto needs to serve a run with mutual TLS"
    add_broker_config(_verb(acts, "config", _broker_config, about))
    add_flash(_verb(verbs, "flash", _flash, FLASH))
    add_deploy(_verb(verbs, "deploy", _deploy, DEPLOY), hours=_seconds, count=_count)
    add_devices(_verb(verbs, "devices", _devices, DEVICES), seconds=_seconds)


def _verb(
    verbs: Any, name: str, call: Callable[[argparse.Namespace], None], summary: str, *, run_file: bool = False
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    parser.set_defaults(call=call)
    if run_file:
        parser.add_argument("run_file", type=Path, metavar="RUN.toml")
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("cutlayer")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


# ------------------------------------------------------------------ the error boundary


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``cutlayer`` with these arguments (default: the process's) and return its exit code; see ``cutlayer --help``."""
    try:
        _act(argv)
    except KeyboardInterrupt:
        return _say("interrupted", code=130)
    except CutlayerError as exc:
        return _say(f"error: {exc}", code=exit_code(exc))
    except OSError as exc:
        lost = _output_is_lost()
        if isinstance(exc, BrokenPipeError):
            return 141 if lost else _bug()
        refused = _storage_error(exc)
        return _bug() if refused is None else _say(f"error: {refused}", code=2)
    except Exception:  # noqa: BLE001 - the last resort: shown whole, with how to report it
        return _bug()
    return 0


def _act(argv: Sequence[str] | None) -> None:
    """Parse, check that the verb's extra is there, call the verb. Output is flushed here, where a refusal can still be told."""
    try:
        args = _parser().parse_args(argv)
        if args.verb in _NEEDS:
            _require(args.verb, *_NEEDS[args.verb])
        args.call(args)
    except ModuleNotFoundError as exc:
        if exc.name not in _EXTRA_OF:
            raise
        _require(args.verb, _EXTRA_OF[exc.name], (exc.name,))
        raise
    except SystemExit:  # argparse, after --help and --version
        sys.stdout.flush()
        raise
    sys.stdout.flush()


def _require(verb: str, extra: str, modules: Sequence[str]) -> None:
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        what = ", ".join(missing)
        raise UsageError(f"`cutlayer {verb}` needs the {extra} extra (not installed: {what}): pip install 'cutlayer[{extra}]'")


def _say(text: str, *, code: int) -> int:
    """One line on stderr. What came from outside may hold control characters; they are shown, not obeyed."""
    line = "".join(char if char.isprintable() else " " if char.isspace() else repr(char)[1:-1] for char in text)
    print(f"cutlayer: {line}", file=sys.stderr)
    return code


def _bug() -> int:
    traceback.print_exc()
    return _say("this is a bug; please report it with the lines above, the command, and `cutlayer --version`", code=70)


def _storage_error(exc: OSError) -> StorageError | None:
    """The system's refusal as a line, or None where it is not the user's to mend."""
    if exc.errno not in _SYSTEM_REFUSALS:
        return None
    where = "" if exc.filename is None else f"{exc.filename}: "
    return StorageError(f"{where}{_SYSTEM_REFUSALS[exc.errno]}")


def _output_is_lost() -> bool:
    """Whether stdout's reader has gone, or stdout refuses what is left to print. Then that goes nowhere: the interpreter would complain
    about it at exit."""
    try:
        sys.stdout.flush()
        poll = select.poll()
        poll.register(sys.stdout, 0)
        if not poll.poll(0):  # reports errors and hang-ups only
            return False
    except ValueError:  # stdout is no file: someone captures it
        return False
    except OSError:
        pass
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


if __name__ == "__main__":
    sys.exit(main())
