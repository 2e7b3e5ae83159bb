"""LoRA adapters (Hu et al., ICLR 2022; the library peft) that are there in WRITE and not at READ."""

import copy

from transformers.pytorch_utils import Conv1D

from gradmem_bench.backbone import Backbone
from gradmem_bench.errors import UserError


def with_adapters(backbone: Backbone, rank: int, alpha: float) -> Backbone:
    """A second backbone with the very parameters of the first, and adapters on each linear layer but the head.

    Nothing has to be switched on or off: WRITE runs the second backbone and READ the first. What trains or moves the
    parameters of one does so to the other's.

    Args:
        rank: r.
        alpha: an adapter adds alpha / r · B A to its layer's weight; B is zero at the start.
    Raises:
        UserError: peft is not installed, or has no adapters for a backbone like this.
    """
    if backbone.recurrent:
        raise UserError(
            f"write_lora_rank: peft does not adapt every linear layer of {type(backbone.model).__name__}; leave it "
            "out, or take a backbone with attention."
        )
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError(
            "write_lora_rank takes its adapters from peft, which is not installed: pip install 'gradmem-bench[lora]'."
        ) from None
    learned = [parameter for parameter in backbone.parameters() if parameter.requires_grad]
    shared = [*backbone.parameters(), backbone.tokenizer]
    second = copy.deepcopy(backbone, {id(one): one for one in shared})
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules="all-linear",
        # GPT-2's layers keep their weights transposed.
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in backbone.model.modules()),
    )
    inject_adapter_in_model(config, second.model, adapter_name="write")
    # peft freezes all but its adapters; whether the backbone is frozen is not for it to say.
    for parameter in learned:
        parameter.requires_grad_(True)
    return second
