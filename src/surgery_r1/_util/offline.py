"""The switches that keep frames, metrics and look-ups on this machine."""

from __future__ import annotations

import os
import sys


def stay_offline(allow_hub: bool) -> None:
    """Turn telemetry off for this process, and hub access unless it is allowed.

    The environment is the only switch that transformers, datasets and huggingface_hub share. huggingface_hub reads it
    when it is imported, so that its own values are set too where that has already happened.
    """
    switches = ["HF_HUB_DISABLE_TELEMETRY", "DISABLE_TELEMETRY"]
    if not allow_hub:
        switches += ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"]
    constants = sys.modules.get("huggingface_hub.constants")
    for name in switches:
        os.environ[name] = "1"
        if hasattr(constants, name):
            setattr(constants, name, True)
