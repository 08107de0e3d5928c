"""Tokenizers, models and configs of the hub or a folder: their code is not run, their pickles are not read.

Whatever comes from elsewhere is loaded here.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ipvrm_lightning.failures import library_errors, one_line

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

#: `owner/name`, or one of the old names without an owner.
_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
#: Fields of configs that say where a model came from, and what wrote it.
_ORIGINS = {"_name_or_path", "base_model_name_or_path", "revision", "transformers_version", "peft_version"}
_NOWHERE = "no such file or folder (and no owner/name on the hub)"

log = logging.getLogger(__name__)


def load_tokenizer(name: str, *, trust_remote_code: bool = False, **options: Any) -> PreTrainedTokenizerBase:
    """A tokenizer.

    Args:
        name: repository on the hub, or a folder.
        trust_remote_code: run code that the repository brings.
        options: of `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError: it cannot be loaded; names the folder and the reason.
    """
    from transformers import AutoTokenizer

    check_place(name)
    with library_errors(f"{name}: the tokenizer cannot be loaded"), _quietly():
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code, **options)
        # a folder without a vocabulary gives a tokenizer that knows nothing, and no error
        if not tokenizer("1 + 1")["input_ids"]:
            raise ValueError("it has no vocabulary: is a tokenizer.json there?")
        own = (tokenizer.init_kwargs.get("auto_map") or {}).get("AutoTokenizer")
        if own and not trust_remote_code:  # transformers takes another class in its place and says nothing
            raise ValueError(f"it is code of its own ({own}), which is run with trust_remote_code: true alone")
    return tokenizer


def find_file(name: str, filename: str, *, revision: str | None = None) -> Path | None:
    """A file of a folder, or of a repository on the hub, from which it is downloaded.

    Args:
        name: folder, or repository.
        filename: in it.
        revision: branch, tag or commit on the hub.

    Returns:
        None where there is no such file, or no such repository that can be reached.
    """
    from transformers.utils import cached_file

    if Path(name).exists():
        path = Path(name) / filename
        return path if path.is_file() else None
    _check_name(name)
    with library_errors(f"{name}: {filename} cannot be looked up"):
        found = cached_file(
            name,
            filename,
            revision=revision,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    return None if found is None else Path(found)


def local_folder(name: str, *, revision: str | None = None) -> Path:
    """A folder; a repository on the hub is downloaded, but for pickles.

    Args:
        name: folder, or repository.
        revision: branch, tag or commit on the hub.
    """
    if Path(name).exists():
        return Path(name)
    from huggingface_hub import snapshot_download

    with library_errors(f"{name}: cannot be downloaded"):
        ignored = ["*.bin", "*.pt", "*.pth", "*.ckpt"]
        return Path(snapshot_download(name, revision=revision, ignore_patterns=ignored))


def add_content(digest: hashlib.blake2b, file: Path) -> None:
    """Add what a file holds to a hash, part by part: weights may be larger than memory.

    Args:
        digest: takes it.
        file: of a model.
    """
    with file.open("rb") as content:
        while block := content.read(1 << 24):
            digest.update(block)


def add_config(digest: hashlib.blake2b, file: Path) -> None:
    """Add what a config says of how weights are used (the scale of an adapter, say) to a hash: no names, no versions.

    Args:
        digest: takes it.
        file: JSON.

    Raises:
        ValueError: it is none; names the file.
    """
    with library_errors(f"{file}: the config cannot be read"):
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(layers := found.get("target_modules"), list):  # a set of PEFT's, written in any order
            found["target_modules"] = sorted(layers)
        meant = {name: value for name, value in found.items() if name not in _ORIGINS}
        digest.update(json.dumps(meant, sort_keys=True).encode())


def load_config(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> PretrainedConfig:
    """A model's config; see `load_tokenizer`."""
    from transformers import AutoConfig

    check_place(name)
    with library_errors(f"{name}: the config cannot be loaded"), _quietly():
        return AutoConfig.from_pretrained(name, revision=revision or "main", trust_remote_code=trust_remote_code)


def quantization_of(name: str, *, revision: str | None = None) -> str | None:
    """How the weights of a folder or repository are quantised, from its config alone; None where they are not.

    Args:
        name: repository on the hub, or a folder.
        revision: branch, tag or commit on the hub.

    Raises:
        ValueError: its config cannot be read; names the file.
    """
    file = find_file(name, "config.json", revision=revision)
    if file is None:
        return None
    with library_errors(f"{file}: the config cannot be read"):
        found = json.loads(file.read_text(encoding="utf-8")).get("quantization_config")
        return None if found is None else str(found.get("quant_method", "of a kind that it does not name"))


def positions(config: PretrainedConfig) -> int | None:
    """Tokens that a model can read at once, each row by itself; None where its config does not say."""
    text = config.get_text_config()
    found = (getattr(text, "max_position_embeddings", None), longrope_switch(config))
    return min((number for number in found if isinstance(number, int) and number > 0), default=None)


def longrope_switch(config: PretrainedConfig) -> int | None:
    """Tokens beyond which longrope (Phi-3 with 128k) reads with other frequencies; None for models without it.

    The longest row of a batch decides for all of its rows, and the keys of a cache stay what they were: beyond it, what
    stands beside a row would change its values.
    """
    given = getattr(config.get_text_config(), "rope_parameters", None) or {}
    kinds = [given, *(kind for kind in given.values() if isinstance(kind, dict))]  # one for each kind of layer, or one
    found = [kind.get("original_max_position_embeddings") for kind in kinds if kind.get("rope_type") == "longrope"]
    return min((number for number in found if isinstance(number, int)), default=None)


def load_model(
    name: str, *, trust_remote_code: bool = False, gguf_file: str | None = None, **options: Any
) -> PreTrainedModel:
    """A causal language model, all of whose weights are in its files.

    Args:
        name: repository on the hub, or a folder.
        trust_remote_code: run code that the repository brings.
        gguf_file: GGUF file in it.
        options: of `AutoModelForCausalLM.from_pretrained`.

    Raises:
        ValueError: it cannot be loaded, or weights are missing, of other shapes or in a pickle; names the folder and
            the reason.
    """
    from transformers import AutoModelForCausalLM

    check_place(name)
    if gguf_file is None:
        _refuse_pickles(Path(name))
        options["use_safetensors"] = True
    else:
        options["gguf_file"] = gguf_file
    with library_errors(f"{name}: the model cannot be loaded"), _quietly():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            name,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **options,
        )
    model, found = loaded
    # transformers would fill both with random values and go on
    if mismatched := sorted(found["mismatched_keys"]):
        parameter, stored, wanted = mismatched[0]
        raise ValueError(
            f"{name}: {len(mismatched)} weights have other shapes than config.json says: {parameter} is"
            f" {tuple(stored)}, should be {tuple(wanted)}"
        )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{name}: {len(missing)} weights that config.json asks for are missing: {missing[0]}, ...")
    if unexpected := sorted(found["unexpected_keys"]):
        log.warning("%s: %d weights are not part of the model: %s, ...", name, len(unexpected), unexpected[0])
    return model


def check_place(name: str) -> None:
    """Refuse a name that is neither a file or folder nor a repository, before anything waits for the hub.

    Args:
        name: repository on the hub, or a path.

    Raises:
        OSError: there is no such thing, or the hub cannot be asked.
    """
    _check_name(name)
    if Path(name).exists() or _is_cached(name):
        return
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=10)  # tries once, where loading would try five times for each of its files
    except RepositoryNotFoundError as error:
        if not isinstance(error, GatedRepoError):
            raise FileNotFoundError(f"{name}: {_NOWHERE}") from error
    except (HfHubHTTPError, HFValidationError):
        pass  # loading says what is wrong
    except Exception as error:  # whose kind depends on the library that this version of the hub's client uses
        reason = one_line(str(error).partition("\n")[0] or type(error).__name__, 200)
        raise OSError(f"{name}: no such file or folder, and the hub cannot be asked for it ({reason})") from error


def _check_name(name: str) -> None:
    if not Path(name).exists() and not _HUB_NAME.fullmatch(name):
        raise FileNotFoundError(f"{name}: {_NOWHERE}")


def _is_cached(name: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model")).exists()


def _refuse_pickles(folder: Path) -> None:
    pickles = [path.name for path in sorted(folder.glob("pytorch_model*.bin"))]
    if any(folder.glob("*.safetensors*")):
        pickles = _not_safetensors(folder / "model.safetensors.index.json")
    if pickles:
        raise ValueError(
            f"{folder}: its weights are pickles ({pickles[0]}), which can run code and are not loaded;"
            " convert them where you trust them: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
        )


def _not_safetensors(index: Path) -> list[str]:
    """Files of weights that the index of a sharded model names though they are no safetensors."""
    if not index.is_file():
        return []
    with library_errors(f"{index}: not the index of a sharded model"):
        named = {str(file) for file in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    return sorted(file for file in named if not file.endswith(".safetensors"))


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers' warnings and tables from the screen: what matters is an error or a line of ours."""
    from transformers.utils import logging as messages

    before = messages.get_verbosity()
    messages.set_verbosity_error()
    try:
        yield
    finally:
        messages.set_verbosity(before)
