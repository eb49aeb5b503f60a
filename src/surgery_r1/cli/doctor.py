"""``surgery-r1 doctor``: what goes wrong with most runs, looked for before one starts."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from surgery_r1._util.files import dump_json
from surgery_r1._util.offline import stay_offline
from surgery_r1.cli.messages import logger
from surgery_r1.cli.output import say
from surgery_r1.cli.overrides import Overrides, in_order
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    from surgery_r1.doctor.check import Result
    from surgery_r1.doctor.patient import Patient
    from surgery_r1.evaluate.endpoint import ServerOptions

_GIB = 2**30


@dataclass(kw_only=True)
class Doctor:
    """Examine a config, a dataset and a model before a long run: a line for each check, what to do for each fault.

    Exit status 1 when something is wrong.
    """

    config: tyro.conf.Positional[str]
    """A TOML file, or a shipped config by name."""
    data: Path
    """A dataset folder that surgery-r1 data build wrote."""
    model: str | None = None
    """The model that the run starts from, instead of the config's: a folder, a run, or tiny."""
    endpoint: str | None = None
    """A chat server that has the model: whether it reads prompts as the trainer does."""
    served_model: str = ""
    """With --endpoint: the model's name there; by default what it lists."""
    allow_remote_frames: bool = False
    """With --endpoint: frames may go to another machine."""
    images: Path | None = None
    """Where the images lie now, if they moved."""
    set: Overrides = ()
    """Change values of the config, written as in TOML: --set rft.prompts=4."""
    out: Path = Path("runs")
    """Where runs will be written: whether the disk has room."""
    processes: int = 1
    """Processes that will train together, one for each GPU."""
    memory: float | None = None
    """GiB that a process may use; by default those of the visible GPU, or of this machine."""
    only: tuple[str, ...] = ()
    """Make these checks alone, with what they need."""
    smoke: bool = False
    """Then run ten frames and five steps of both stages, predict and score; say what a full run will take."""
    receipt: Path | None = None
    """Write what was found, in figures and hashes, without a frame; into a folder under the name of its hash."""
    json: bool = False
    """Print one JSON object instead of lines."""
    allow_hub: bool = False
    """Allow downloads from the model hub."""

    def run(self) -> int:
        """Exit status: 1 when a check fails."""
        stay_offline(self.allow_hub)
        from surgery_r1.doctor.check import examine
        from surgery_r1.doctor.registry import chosen

        checks = chosen(self.only)
        with tempfile.TemporaryDirectory(prefix="surgery_r1_doctor_") as scratch:
            patient = self._patient(Path(scratch))
            results = examine(patient, checks, self._told)
            bad = [result.name for result in results if result.status == "wrong"]
            measured = self._smoke(patient, bad) if self.smoke else None
            written = self._write(patient, results, measured)
        self._sum_up(results, bad, measured, written)
        return 1 if bad else 0

    def _patient(self, scratch: Path) -> Patient:
        from surgery_r1.data.dataset import open_dataset
        from surgery_r1.doctor.patient import Patient
        from surgery_r1.train.config import load_config
        from surgery_r1.train.options import Permissions
        from surgery_r1.train.planning.stage import this_machine

        for name, value in (("--processes", self.processes), ("--memory", self.memory)):
            if value is not None and value <= 0:
                raise SurgeryR1Error(f"{name} {value}", fix="give a number above 0")
        config = load_config(self.config, in_order(self.set))
        memory = None if self.memory is None else round(self.memory * _GIB)
        return Patient(
            config,
            open_dataset(self.data, images=self.images),
            self.model or config.model.base,
            scratch,
            self.out,
            this_machine(processes=self.processes, memory=memory),
            self._server(),
            Permissions(hub=self.allow_hub),
        )

    def _server(self) -> ServerOptions | None:
        from surgery_r1.evaluate.endpoint import KEY_VARIABLE, ServerOptions

        if self.endpoint is None:
            if self.served_model or self.allow_remote_frames:
                flag = "--served-model" if self.served_model else "--allow-remote-frames"
                raise SurgeryR1Error(f"{flag} without --endpoint", fix="name the server with --endpoint")
            return None
        key, remote = os.environ.get(KEY_VARIABLE, ""), self.allow_remote_frames
        return ServerOptions(self.endpoint, self.served_model, key, remote, retries=2)

    def _told(self, result: Result) -> None:
        if not self.json:
            say(result.line())

    def _smoke(self, patient: Patient, bad: list[str]) -> dict[str, Any] | None:
        if bad:
            logger.warning("--smoke is left out: see to %s first", ", ".join(bad))
            return None
        from surgery_r1.doctor.smoke import smoke

        return smoke(patient, logger.info)

    def _write(self, patient: Patient, results: list[Result], measured: dict[str, Any] | None) -> Path | None:
        if self.receipt is None:
            return None
        from surgery_r1.doctor.receipt import receipt, write_receipt

        return write_receipt(receipt(patient, self.config, results, measured), self.receipt)

    def _sum_up(
        self, results: list[Result], bad: list[str], measured: dict[str, Any] | None, written: Path | None
    ) -> None:
        if self.json:
            from dataclasses import asdict

            found = {"checks": [asdict(result) for result in results], "wrong": bad, "smoke": measured}
            say(dump_json({**found, "receipt": None if written is None else str(written)}, indent=2))
            return
        seconds, skipped = sum(result.seconds for result in results), [r for r in results if r.status == "skipped"]
        say(f"\n{len(results)} checks in {seconds:.0f} s: {len(bad)} wrong, {len(skipped)} skipped")
        if measured is not None:
            hours, gib = measured["hours"], measured["peak_memory_bytes"] / _GIB
            say(
                f"a step takes {measured['sft_step_seconds']:.2f} s (SFT) and {measured['rft_step_seconds']:.2f} s "
                f"(RFT), a reply {measured['reply_seconds']:.2f} s; most memory {gib:.1f} GiB"
            )
            say(
                f"a full run: SFT {hours['sft']:.1f} h, RFT {hours['rft']:.1f} h, predicting val "
                f"{hours['predict_val']:.1f} h, {hours['total']:.1f} h in all"
            )
            load, cores = os.getloadavg()[0], os.cpu_count() or 1
            if load > cores + 1:
                say(f"this machine is busy (load {load:.1f} on {cores} cores): alone, a run takes less")
        if written is not None:
            say(f"receipt (self-reported): {written}")
