"""``surgery-r1 demo``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from surgery_r1._util.files import dump_json
from surgery_r1._util.offline import stay_offline
from surgery_r1.cli.output import say
from surgery_r1.cli.overrides import Overrides, in_order


@dataclass
class DemoCommand:
    """The paper's story on the tiny model, offline: scenes, dataset, base, SFT, RFT, table, report."""

    out: Path = Path("demo")
    """Folder for everything; finished parts of an interrupted demo are kept."""
    config: str = "tiny"
    """A shipped config by name, or a TOML file."""
    set: Overrides = ()
    """Change values of the config, written as in TOML: --set rft.max_steps=20 sft.learning_rate=1e-4."""
    seed: int | None = None
    """Seed of the scenes and of both training stages; by default the config's."""
    frames: int | None = None
    """Frames per domain; the full sets (2,007 and 97) by default."""
    controls: bool = False
    """Also train with random rewards, and with SFT continued instead of RFT."""
    fresh: bool = False
    """Start again instead of keeping finished parts."""
    json: bool = False
    """Print the summary as JSON at the end."""

    def run(self) -> int:
        """Exit status 0; errors are raised."""
        stay_offline(allow_hub=False)
        from surgery_r1.demo import run_demo

        settings = {name: getattr(self, name) for name in ("config", "seed", "frames", "controls", "fresh")}
        summary = run_demo(self.out, overrides=in_order(self.set), **settings)
        if self.json:
            say(dump_json(summary, indent=2))
        return 0
