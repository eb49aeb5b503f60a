"""Memory of a forward and backward pass, counted on tensors that have a shape and no contents.

Nothing here restates how a layer works. The model class that will be trained, with its adapter, its attention over
prefix trees, TRL's projection to the vocabulary and checkpointing as configured, is run once on torch's fake tensors;
every storage that an operation makes is counted from where it is made until it is freed. That is what the process will
allocate, with the kernels of a CPU. A GPU's mixed precision is counted with the casts of ``torch.autocast``; its
projection to the vocabulary runs in another kernel and has a formula, :func:`head_on_gpu`.

Decoder layers are alike, so models of one and of two layers are run; what each further layer keeps is the difference.
"""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from trl.trainer.utils import add_fused_lm_head

from surgery_r1.models import four_bit
from surgery_r1.models.sharing import attention
from surgery_r1.models.sharing.attention import core
from surgery_r1.models.sharing.prefix_tree import TreeLayout

#: Rows of a tile and columns of the vocabulary in it, in TRL's projection (``trl/kernels/chunked_logprob.py``).
_TILE_ROWS, _TILE_COLUMNS = 4096, 32768


class Shape(NamedTuple):
    """Rows of a pass, padded to one length; with shared frames one packed sequence.

    Attributes:
        scored: positions that have a label, which are all that a GPU projects to the vocabulary.
    """

    rows: int
    length: int
    scored: int
    shared: bool


@dataclass(frozen=True, slots=True)
class PassMemory:
    """Bytes of one pass, beside weights, their gradients and optimiser states.

    Attributes:
        kept: what the forward pass leaves for the backward pass.
        layer: the most that the backward pass of a layer needs on top of it.
        head: the most that the projection to the vocabulary needs on top of it, forward and backward.
    """

    kept: int
    layer: int
    head: int


class _Alive(TorchDispatchMode):
    """Counts the bytes of storages that operations inside it make, as long as they live."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.now = self.peak = 0
        # By address: of weights, and of what is counted already.
        self._known = known

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if not isinstance(tensor, torch.Tensor):
                continue
            storage = tensor.untyped_storage()
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return out

    def _freed(self, address: int, size: int) -> None:
        self.now -= size
        self._known.discard(address)


@dataclass(frozen=True)
class Counted:
    """A model to be counted.

    Attributes:
        config: transformers' config of the model.
        dtype: of its weights.
        adapter: PEFT's LoraConfig, None where all weights are trained.
        checkpointing: activations are recomputed in the backward pass.
        gpu: kernels of a GPU.
        mixed: mixed precision in bfloat16.
        frozen_tower: the vision tower is not trained.
        entropy: also compute the entropy of each position, as RFT does for its log.
        four_bit: the base is held in 4 bit.
    """

    config: Any
    dtype: torch.dtype
    adapter: Any
    checkpointing: bool
    gpu: bool
    mixed: bool
    frozen_tower: bool = True
    entropy: bool = False
    four_bit: bool = False

    def model(self, layers: int | None = None) -> Any:
        """The model on the meta device, wrapped as trainers wrap it.

        Args:
            layers: of the language model; None: all, and the vision tower too.
        """
        from peft import get_peft_model
        from transformers import AutoModelForImageTextToText

        config = deepcopy(self.config)
        text = config.get_text_config()
        if layers is not None:
            text.num_hidden_layers = layers
            if getattr(text, "layer_types", None):
                text.layer_types = text.layer_types[:layers]
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config, dtype=self.dtype, attn_implementation="sdpa")
            if layers is not None:
                # Not run here: it would be built block by block for nothing.
                model.model.visual.blocks = torch.nn.ModuleList()
            if self.four_bit:
                four_bit.shaped(model, self.dtype)
            add_fused_lm_head(model, outputs=("log_probs", *(("entropy",) if self.entropy else ())))
            if self.checkpointing:
                model.gradient_checkpointing_enable({"use_reentrant": False})
            model.model.visual.requires_grad_(not self.frozen_tower)
            if self.adapter is not None:
                model = get_peft_model(model, deepcopy(self.adapter))
                if self.checkpointing:
                    model.enable_input_require_grads()
        return model.train()

    def memory(self, shape: Shape) -> PassMemory:
        """Bytes of a pass over the language model and the projection to the vocabulary."""
        one, two = (self._measured(shape, layers) for layers in (1, 2))
        more = self.config.get_text_config().num_hidden_layers - 2
        kept = two.kept + more * (two.kept - one.kept)
        head = two.head
        if self.gpu:
            text = self.config.get_text_config()
            head = head_on_gpu(shape, text.hidden_size, text.vocab_size, self._compute_size, self.adapter is None)
        return PassMemory(kept, two.layer, head)

    def reading(self, rows: int, length: int) -> int:
        """Bytes that reading prompts takes, beside the keys and values that it leaves."""
        model = self.model(1).eval()
        if self.checkpointing:
            core(model).gradient_checkpointing_disable()
        with FakeTensorMode(), torch.no_grad():
            known = _give_contents(model)
            inputs = _inputs(Shape(rows, length, 0, shared=False))
            alive = _Alive(known | _addresses(inputs))
            with alive:
                core(model).model(input_ids=inputs["input_ids"], position_ids=inputs["position_ids"], use_cache=False)
        return alive.peak

    @property
    def _compute_size(self) -> int:
        return 2 if self.mixed else self.dtype.itemsize

    def _measured(self, shape: Shape, layers: int) -> PassMemory:
        model = self.model(layers)
        if shape.shared:
            attention.enable(model)
        with FakeTensorMode():
            known = _give_contents(model)
            for parameter in model.parameters():
                # Gradients are counted with the weights that they belong to.
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(lambda done: setattr(done, "grad", None))
            inputs = _inputs(shape)
            return self._run(model, inputs, _Alive(known | _addresses(inputs)))

    def _run(self, model: Any, inputs: dict[str, Any], alive: _Alive) -> PassMemory:
        marks: dict[str, int] = {}

        def left(name: str) -> None:
            """Note the peak since the last mark."""
            marks[name] = alive.peak
            alive.peak = alive.now

        def between(module: Any, args: Any, output: Any) -> None:
            left("forward")
            marks["kept"] = alive.now
            output.last_hidden_state.register_hook(lambda grad: left("head"))

        hook = core(model).model.register_forward_hook(between)
        precision = torch.autocast("cpu", torch.bfloat16) if self.mixed else nullcontext()
        with alive:
            with precision:
                output = model(**inputs, fused_lm_head=True)
            output.loss.backward()
            left("layer")
        hook.remove()
        kept = marks["kept"]
        # A forward pass that keeps little may need more than its backward pass.
        layer = max(marks["layer"], marks["forward"]) - kept
        return PassMemory(kept, max(0, layer), max(0, marks["head"] - kept))


def head_on_gpu(shape: Shape, hidden: int, vocabulary: int, size: int, trained: bool) -> int:
    """Bytes of TRL's projection to the vocabulary with its Triton kernel (``trl/kernels/chunked_logprob.py``).

    Scored positions alone are projected, in tiles of up to 4,096 x 32,768 logits. Beside the tile there are the
    positions' states, the gradient of these in float32 and in the states' own type, and the states' gradient at all
    positions; where the projection is trained, its gradient in float32 and in its own type.

    Args:
        size: bytes of a value of states and logits.
        trained: the projection itself is trained.
    """
    tile = min(shape.scored, _TILE_ROWS) * min(vocabulary, _TILE_COLUMNS) * size
    states = shape.scored * hidden * (2 * size + 4) + shape.rows * shape.length * hidden * size
    weights = vocabulary * hidden * (4 + size) if trained else 0
    return tile + states + weights


def _give_contents(model: Any) -> set[int]:
    """Replace tensors of the meta device by fake ones of the CPU; addresses of their storages."""
    made: dict[int, Any] = {}
    held: list[torch.Tensor] = []

    def fake(tensor: Any) -> Any:
        if id(tensor) not in made and four_bit.to_be_rounded(tensor):
            made[id(tensor)], parts = four_bit.rounded(tensor)
            held.extend(parts)
        elif id(tensor) not in made:
            new = torch.empty(tensor.shape, dtype=tensor.dtype)
            trained = isinstance(tensor, torch.nn.Parameter)
            made[id(tensor)] = torch.nn.Parameter(new, tensor.requires_grad) if trained else new
        return made[id(tensor)]

    for module in model.modules():
        for table in (module._parameters, module._buffers):
            table.update({name: fake(tensor) for name, tensor in table.items() if tensor is not None})
    return {tensor.untyped_storage()._cdata for tensor in (*made.values(), *held)}


def held_in_4bit(weight: Any) -> int:
    """Bytes of a weight that will be rounded, with its constants."""
    with FakeTensorMode():
        return sum(part.nbytes for part in four_bit.rounded(weight)[1])


def _addresses(inputs: dict[str, Any]) -> set[int]:
    return {value.untyped_storage()._cdata for value in inputs.values() if torch.is_tensor(value)}


def _inputs(shape: Shape) -> dict[str, Any]:
    """What the model's forward takes; images are in the text already (their features are counted elsewhere)."""
    ids = torch.zeros(shape.rows, shape.length, dtype=torch.long)
    positions = torch.zeros(3, shape.rows, shape.length, dtype=torch.long)
    inputs: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "shift_labels": torch.zeros_like(ids)}
    if shape.shared:
        # A trunk and a branch: where a tree parts makes no difference to what it holds.
        trunk = max(1, shape.length // 2)
        inputs["tree"] = TreeLayout(((0, trunk, shape.length), (trunk, shape.length, shape.length)))
    return inputs
