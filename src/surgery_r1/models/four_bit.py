"""A base model in 4 bit, on which a LoRA adapter is trained (QLoRA, arXiv 2305.14314): bitsandbytes' nf4.

The linear layers of the language model are rounded, their constants too (double quantisation). The vision tower is
not: its features are those of the base itself, and what is kept of them serves both. Embeddings, norms and the output
layer stay as well, in the type in which they were loaded. PEFT's ``prepare_model_for_kbit_training`` would cast all
three and the tower to float32, which costs 3.5 GiB of a 7B model, and makes features and residuals float32; what else
it does (freezing, checkpointing) is done for every adapter here.

bitsandbytes is an extra: ``pip install 'surgery-r1[qlora]'``. Nothing here imports it before it is asked for.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surgery_r1._util.files import read_json
from surgery_r1.errors import SurgeryR1Error

if TYPE_CHECKING:
    import torch

#: Modules that are not rounded, by their names in all families.
_WHOLE = ("model.visual", "lm_head")
#: Weights that share a constant, and constants that share one.
_BLOCK, _BLOCK_OF_CONSTANTS = 64, 256


def refuse_uninstalled(what: str) -> None:
    """Raise where bitsandbytes is not installed.

    Args:
        what: needs it.

    Raises:
        SurgeryR1Error: with the extra that brings it.
    """
    if find_spec("bitsandbytes") is None:
        raise SurgeryR1Error(
            f"{what} needs bitsandbytes, which is not installed", fix="pip install 'surgery-r1[qlora]'"
        )


def refuse_rounded(base: Path) -> None:
    """Raise for a base that was saved in few bits: an adapter could not be merged into it.

    Raises:
        SurgeryR1Error: then.
    """
    found = read_json(base / "config.json").get("quantization_config")
    if found is not None:
        method = found.get("quant_method") if isinstance(found, dict) else found
        raise SurgeryR1Error(
            f"its weights are quantised already ({method})",
            where=base,
            fix="take the weights that it was made from, and set model.load_in_4bit = true to hold them in 4 bit",
        )


def loading(base: Path, dtype: str, device: torch.device) -> dict[str, Any]:
    """Arguments of transformers' ``from_pretrained`` that round a model's weights while they are read.

    Args:
        dtype: in which layers compute, ``auto``: that in which the base is saved.
    """
    import torch
    from transformers import AutoConfig

    if dtype == "auto":
        compute = getattr(AutoConfig.from_pretrained(base, local_files_only=True), "dtype", None) or torch.float32
    else:
        compute = getattr(torch, dtype)
    place: str | int = str(device)
    if device.type == "cuda":
        # accelerate compares it with the GPU of its process, by number.
        place = torch.cuda.current_device() if device.index is None else device.index
    return {"quantization_config": _settings(compute), "device_map": {"": place}}


def _settings(compute: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=list(_WHOLE),
    )


def settle(model: Any) -> None:
    """Let the layers of a model train after they were asked without gradients.

    On a CPU with AVX-512 for bfloat16, bitsandbytes 0.50 packs a layer's weights anew the first time that it is asked
    in evaluation mode. The packed layer computes in bfloat16, whatever it was told, and gives its input no gradient:
    all layers below it would stop learning after the first look at dev.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def in_4bit(model: Any) -> bool:
    """Whether a model, with an adapter or without, was loaded in 4 bit."""
    return bool(getattr(model, "is_loaded_in_4bit", False))


def adapters_in_float32(model: Any) -> None:
    """Undo TRL's rounding of adapters on a base in 4 bit to bfloat16.

    A step of 1e-5 on a weight of .01 is lost in bfloat16: an adapter would stop learning at RFT's learning rate.
    """
    if in_4bit(model):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()


# ------------------------------------------------------------------------------------- without weights, for a plan


def shaped(model: Any, dtype: torch.dtype) -> None:
    """Give a model on the meta device, of ``dtype``, the layers that it would have in 4 bit."""
    import torch
    from transformers.integrations import replace_with_bnb_linear

    before = torch.get_default_dtype()
    # New layers are made in it, biases too.
    torch.set_default_dtype(dtype)
    try:
        replace_with_bnb_linear(model, modules_to_not_convert=list(_WHOLE), quantization_config=_settings(dtype))
    finally:
        torch.set_default_dtype(before)
    model.is_loaded_in_4bit = True
    settle(model)


def to_be_rounded(weight: Any) -> bool:
    """Whether a weight of a model of :func:`shaped` would be held in 4 bit."""
    return type(weight).__name__ == "Params4bit"


def rounded(weight: Any) -> tuple[torch.nn.Parameter, list[torch.Tensor]]:
    """A weight of :func:`shaped` as memory would hold it, without contents, and all tensors that belong to it."""
    import torch
    from bitsandbytes.functional import QuantState

    values = weight.numel()
    blocks = -(-values // _BLOCK)
    of_constants = QuantState(
        absmax=torch.empty(-(-blocks // _BLOCK_OF_CONSTANTS)),
        code=torch.empty(256),
        blocksize=_BLOCK_OF_CONSTANTS,
        dtype=torch.float32,
    )
    state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8),
        shape=weight.shape,
        code=torch.empty(16),
        blocksize=_BLOCK,
        quant_type="nf4",
        dtype=weight.dtype,
        offset=torch.empty(()),
        state2=of_constants,
    )
    packed = torch.nn.Parameter(torch.empty(-(-values // 2), 1, dtype=torch.uint8), requires_grad=False)
    packed.quant_state = state  # type: ignore[attr-defined]
    return packed, [packed, state.absmax, state.code, state.offset, of_constants.absmax, of_constants.code]
