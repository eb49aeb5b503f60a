"""The switches that keep frames, metrics and look-ups on this machine."""

from __future__ import annotations

import os
import sys


def stay_offline(allow_hub: bool) -> None:
    """Turn telemetry off for this process, and hub access unless it is allowed.

    The environment is the only switch that transformers, datasets and huggingface_hub share. huggingface_hub reads it
    when it is imported, so that its own values are set too where that has already happened.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["DISABLE_TELEMETRY"] = "1"
    if not allow_hub:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["TRANSFORMERS_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
        if not allow_hub:
            constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
