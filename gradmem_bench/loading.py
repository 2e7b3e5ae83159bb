"""From a BackboneConfig to a Backbone: weights from a hub or a folder, or a small random model made on the spot."""

import json
import re
from collections.abc import Collection
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MambaConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging
from transformers.utils.hub import resolve_revision

from gradmem_bench.backbone import Backbone
from gradmem_bench.config import BackboneConfig, fingerprint
from gradmem_bench.errors import Unreachable, UserError, did_you_mean
from gradmem_bench.hashing import file_hash
from gradmem_bench.hub import wait_briefly
from gradmem_bench.registry import built_in_backbones, recipe_folder

_PRESET = re.compile(r"(?P<family>[a-z0-9]+)-(?P<layers>\d+)x(?P<width>\d+)")
_FAMILIES = ("llama", "gpt2", "neox", "mamba")
_ATTENTION_KEYS, _MAMBA_KEYS = ("heads", "kv_heads", "max_positions"), ("state_size", "conv_kernel", "expand")
_FALLBACK_TOKENIZER = "openai-community/gpt2"
_READ = (
    "config.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.model",
)
"""The files of a folder that a model and its tokenizer are read from; what else lies there changes neither."""


def load_backbone(
    config: BackboneConfig, task_tokenizer: PreTrainedTokenizerBase | None, device: str, seed: int
) -> Backbone:
    """The backbone that `config` names, on `device`; on `meta` nothing is read or drawn but its shape.

    Args:
        task_tokenizer: used by a random model that is given no tokenizer of its own.
        seed: of a random model's weights.
    Raises:
        UserError: the name is neither a folder, a hub id that can be reached, nor a random model's shape; or the
            folder has no safetensors weights (pickled ones and its own code are never read), or lacks some of them.
    """
    wait_briefly()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    preset = _PRESET.fullmatch(config.name)
    if preset and not Path(config.name).exists():
        return _random(config, preset, task_tokenizer, device, seed)
    return _pretrained(config, _place(config.name), device)


def recorded_name(name: str) -> str:
    """What a record calls the backbone `name`: of a folder it is the last part, wherever the folder stands."""
    place = Path(_place(name))
    return place.resolve().name if place.is_dir() else name


def own_folder(name: str) -> Path | None:
    """The folder of the user's that `name` stands for; `None` for what is built in, a hub id and a random shape."""
    folder = Path(_place(name))
    own = folder.is_dir() and folder.resolve().parent != recipe_folder("backbone").resolve()
    return folder if own else None


def contents(config: BackboneConfig, shape: Backbone) -> str | None:
    """What stands behind the name of a backbone, or of a random one's tokenizer, where that may change.

    Args:
        shape: what `config` makes on `meta`.
    Returns:
        The fingerprint of a folder's files, a hub's commit, or a fingerprint of a tokenizer's vocabulary; `None` for
        what is built in, and for a random shape with the task's own tokenizer or GPT-2's.
    """
    random = shape.identity["weights_hash"].startswith("random-")
    name = config.tokenizer if random else config.name
    if name is None:
        return None
    folder = own_folder(name)
    if folder is not None:
        files = {file for pattern in _READ for file in folder.glob(pattern) if file.is_file()}
        return fingerprint({file.name: file_hash(file) for file in files})
    return shape.identity["weights_hash" if random else "revision"]


def _place(name: str) -> str:
    built_in = recipe_folder("backbone") / name
    return str(built_in) if built_in.is_dir() else name


def _random(
    config: BackboneConfig,
    preset: re.Match[str],
    task_tokenizer: PreTrainedTokenizerBase | None,
    device: str,
    seed: int,
) -> Backbone:
    if preset["family"] not in _FAMILIES:
        raise UserError(
            f"There is no random backbone of family '{preset['family']}'.{did_you_mean(preset['family'], _FAMILIES)}"
        )
    if config.tokenizer:
        tokenizer = _tokenizer(config.tokenizer, None)
    else:
        tokenizer = task_tokenizer or _tokenizer(_FALLBACK_TOKENIZER, None)
    shape = _shape(config, preset, tokenizer)
    with torch.random.fork_rng(), torch.device("meta" if device == "meta" else "cpu"):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(shape)
    # Two versions of transformers make the same model.
    described = {key: value for key, value in shape.to_diff_dict().items() if key != "transformers_version"}
    identity = {
        "name": config.name,
        "revision": None,
        "tokenizer": config.tokenizer or tokenizer.name_or_path,
        "weights_hash": "random-" + fingerprint([described, sorted(tokenizer.get_vocab().items())]),
    }
    return Backbone(model.to(device), tokenizer, identity)


def _shape(config: BackboneConfig, preset: re.Match[str], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    layers, width = int(preset["layers"]), int(preset["width"])
    mamba = preset["family"] == "mamba"
    foreign = [key for key in (_ATTENTION_KEYS if mamba else _MAMBA_KEYS) if key in config.model_fields_set]
    if foreign:
        kind = "has no attention" if mamba else "is no Mamba"
        raise UserError(f"backbone.{foreign[0]} means nothing to {config.name}, which {kind}.")
    heads = config.heads or max(1, width // (32 if width <= 256 else 64))
    if layers < 1 or width < 1:
        raise UserError(f"{config.name} has nothing in it: a random backbone takes at least 1 layer and some width.")
    if not mamba and width % heads or (width // heads) % 2:
        way = f"an even width, such as {width + 1}" if width % 2 else f"set backbone.heads to a divisor of {width // 2}"
        raise UserError(f"{config.name} with {heads} heads has no even head size, which attention needs: {way}.")
    if config.kv_heads and (preset["family"] != "llama" or heads % config.kv_heads):
        raise UserError(
            f"backbone.kv_heads={config.kv_heads} needs a llama backbone and has to divide its {heads} heads."
        )
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": True,
    }
    if config.init_std is not None:
        common["initializer_range"] = config.init_std
    if preset["family"] == "gpt2":
        sizes = {"n_layer": layers, "n_embd": width, "n_head": heads, "n_positions": config.max_positions}
        return GPT2Config(**sizes, **common)
    sizes = {"num_hidden_layers": layers, "hidden_size": width}
    if mamba:
        given = {key: value for key in _MAMBA_KEYS if (value := getattr(config, key)) is not None}
        return MambaConfig(**sizes, **given, **common)
    sizes |= {
        "intermediate_size": 4 * width,
        "num_attention_heads": heads,
        "max_position_embeddings": config.max_positions,
    }
    if preset["family"] == "neox":
        return GPTNeoXConfig(**sizes, **common)
    return LlamaConfig(**sizes, num_key_value_heads=config.kv_heads or heads, **common)


def _pretrained(config: BackboneConfig, where: str, device: str) -> Backbone:
    names = {*_ATTENTION_KEYS, *_MAMBA_KEYS, "init_std", "tokenizer"} & config.model_fields_set
    if names:
        raise UserError(f"backbone.{sorted(names)[0]} shapes a random backbone, but {config.name} has its own.")
    _need_folder(where)
    # Once, for shape, weights and tokenizer: a hub's model may move while it is loaded.
    revision = resolve_revision(where, config.revision)
    try:
        shape = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        missing: Collection[str] = ()
        if device == "meta":
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32, trust_remote_code=False)
        else:
            model, report = AutoModelForCausalLM.from_pretrained(
                where,
                revision=revision,
                dtype=torch.float32,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
            missing = report["missing_keys"]
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise Unreachable(
            f"The backbone '{config.name}' is no folder with a config.json and safetensors weights, no hub id that can "
            f"be reached from here, not built in as {' and '.join(built_in_backbones())} are, and no random shape such "
            f"as llama-2x64 or gpt2-12x768 ({_first_line(error)})"
        ) from None
    if missing:
        # transformers would draw them at random.
        raise UserError(f"The weights of {config.name} are incomplete: '{min(missing)}' is not among them.")
    local, name = Path(where).is_dir(), recorded_name(config.name)
    identity = {
        "name": name,
        "revision": None if local else getattr(revision, "resolved", revision),
        "tokenizer": name,
        "weights_hash": "meta" if device == "meta" else weights_hash(model),
    }
    return Backbone(model.to(device), _tokenizer(where, revision), identity)


def _need_folder(where: str) -> None:
    """A path of no folder is no hub id either, and its hub need not be asked."""
    if where.startswith(("/", "./", "../", "~")) and not Path(where).is_dir():
        raise UserError(f"There is no folder {where}: one with a model and its tokenizer was expected.")


def _tokenizer(name: str, revision: str | None) -> PreTrainedTokenizerBase:
    _need_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(_place(name), revision=revision, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise Unreachable(
            f"There is no tokenizer at '{name}': it is neither a folder with a tokenizer.json nor a hub id that can be "
            "reached from here; name one with --set backbone.tokenizer=FOLDER, or pretrain's --tokenizer "
            f"({_first_line(error)})"
        ) from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"The tokenizer '{name}' has no end-of-text token, which every answer has to end with.")
    return tokenizer


def tokenizer_text(tokenizer: PreTrainedTokenizerBase | None) -> str | None:
    """A task's own tokenizer as JSON, so that a checkpoint of a random backbone can be used without the task."""
    if tokenizer is None:
        return None
    return json.dumps({"tokenizer": tokenizer.backend_tokenizer.to_str(), "special": tokenizer.special_tokens_map})


def tokenizer_from_text(text: str | None) -> PreTrainedTokenizerBase | None:
    """What `tokenizer_text` described."""
    if text is None:
        return None
    about = json.loads(text)
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(about["tokenizer"]), clean_up_tokenization_spaces=False, **about["special"]
    )


def weights_hash(module: torch.nn.Module) -> str:
    """SHA-256 over the names, shapes and bytes of all weights, the first 16 hex digits."""
    digest = sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".") + "."
