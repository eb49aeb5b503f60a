"""The command ``surgery-r1``. Arguments are parsed before torch is imported, so that ``--help`` answers at once."""

from __future__ import annotations

import errno
import os
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from surgery_r1 import __version__
from surgery_r1._util.allocator import keep_freed_memory
from surgery_r1._util.extras import extras_named
from surgery_r1.cli.autopsy import Autopsy
from surgery_r1.cli.bench import Bench
from surgery_r1.cli.data import Build, Check, MakeScenes
from surgery_r1.cli.data_export import ExportData
from surgery_r1.cli.demo import DemoCommand
from surgery_r1.cli.doctor import Doctor
from surgery_r1.cli.evaluate import Report, Score
from surgery_r1.cli.gpu import Gpu
from surgery_r1.cli.messages import shown_messages
from surgery_r1.cli.predict import Ask, PredictCommand
from surgery_r1.cli.reproduce import ReproduceCommand
from surgery_r1.cli.serve import Serve
from surgery_r1.cli.train import Export, TrainRft, TrainSft, TrainSpecialist
from surgery_r1.errors import OtherProcessFailed, SurgeryR1Error

_named = tyro.conf.subcommand

DataCommand = (
    Annotated[MakeScenes, _named("make-scenes")]
    | Annotated[Check, _named("check")]
    | Annotated[Build, _named("build")]
    | Annotated[ExportData, _named("export")]
)
TrainCommand = (
    Annotated[TrainSft, _named("sft")]
    | Annotated[TrainRft, _named("rft")]
    | Annotated[TrainSpecialist, _named("specialist")]
)


@dataclass
class Data:
    """Draw scenes, check label folders, build datasets."""

    command: DataCommand

    def run(self) -> int:
        return self.command.run()


@dataclass
class Train:
    """Fine-tune a model: SFT, then RFT; or train a rival."""

    command: TrainCommand

    def run(self) -> int:
        return self.command.run()


Command = (
    Annotated[DemoCommand, _named("demo")]
    | Annotated[ReproduceCommand, _named("reproduce")]
    | Annotated[Data, _named("data")]
    | Annotated[Train, _named("train")]
    | Annotated[PredictCommand, _named("predict")]
    | Annotated[Score, _named("score")]
    | Annotated[Report, _named("report")]
    | Annotated[Autopsy, _named("autopsy")]
    | Annotated[Ask, _named("ask")]
    | Annotated[Serve, _named("serve")]
    | Annotated[Export, _named("export")]
    | Annotated[Doctor, _named("doctor")]
    | Annotated[Bench, _named("bench")]
    | Annotated[Gpu, _named("gpu")]
)

_DESCRIPTION = f"""Train, judge and run reasoning models on surgical frames (version {__version__}).
Research use only. --debug after any command shows tracebacks."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0 fine, 1 errors in the labels, 2 bad input, 130 interrupted."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [arg for arg in args if arg != "--debug"]
    try:
        with shown_messages(debug), extras_named(trains=_trains(args)):
            status = _run(args)
        sys.stdout.flush()
    except OtherProcessFailed as error:
        # The process that failed says why.
        return _fail(str(error), 2, debug) if error.tell or debug else 2
    except SurgeryR1Error as error:
        return _fail(str(error), 2, debug)
    except KeyboardInterrupt:
        return _fail(
            "interrupted; what was finished is kept: run the same command again, with --resume if it trains", 130, debug
        )
    except BrokenPipeError:
        # Whoever read the output has gone; Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if _disk_full(error):
            fix = "free some and run the same command again, with --resume if it trains"
            return _fail(f"no space left on the disk; {fix}", 2, debug)
        what = f"{type(error).__name__}: {' '.join(str(error).split())}"
        if isinstance(error, OSError):
            return _fail(f"{what}; --debug shows where", 2, debug)
        return _fail(f"unexpected {what}; --debug shows where, please report it", 2, debug)
    return status


def _trains(args: list[str]) -> bool:
    """Whether a command needs the trainers; ``data export`` needs their data sets."""
    command = args[:1] in (["train"], ["demo"], ["reproduce"], ["bench"], ["gpu"], ["doctor"])
    return command or args[:2] == ["data", "export"]


def _run(args: list[str]) -> int:
    if args == ["--version"]:
        sys.stdout.write(f"surgery-r1 {__version__}\n")
        return 0
    command = tyro.cli(
        Command,  # type: ignore[arg-type]
        args=args,
        prog="surgery-r1",
        description=_DESCRIPTION,
        config=(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes, tyro.conf.FlagCreatePairsOff),
    )
    keep_freed_memory(os.environ)
    return int(command.run())


#: What libraries say of a full disk in words only: safetensors, and torch, whose archive writer finds that less was
#: written than it wrote.
_DISK_FULL = re.compile(
    r"No space left on device|inline_container\.cc.*unexpected pos|basic_ios::clear: iostream error"
)


def _disk_full(error: BaseException | None) -> bool:
    """Also where a library wrapped it, or tells it in words of its own."""
    while error is not None:
        if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _DISK_FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _fail(message: str, status: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    sys.stderr.write(f"surgery-r1: {message}\n")
    return status
