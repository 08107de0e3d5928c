"""Model folders: files missing, cut, of another model, or out to run code."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from .driver import Case

Files = dict[str, bytes | None]


class _Touch:
    """Makes the file `ran` where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("ran", "w")


_CODE = (
    b"open('ran', 'w')\nfrom transformers import *\nclass Own(Qwen3Config): pass\nclass OwnLM(Qwen3ForCausalLM): pass\n"
)


def model_files(configs: str) -> Files:
    """The sound folder's files."""
    folder = Path(configs) / "model"
    return {f"model/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())}


def _edit(files: Files, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(files[f"model/{name}"] or b"{}")
    change(content)
    files[f"model/{name}"] = json.dumps(content).encode()


def _weights(files: Files, change: Callable[[dict[str, Any]], Any]) -> None:
    from safetensors.torch import load, save

    tensors = load(files["model/model.safetensors"] or b"")
    change(tensors)
    files["model/model.safetensors"] = save(tensors, metadata={"format": "pt"})


def _pickled(files: Files) -> None:
    del files["model/model.safetensors"]
    files["model/pytorch_model.bin"] = pickle.dumps({"model.embed_tokens.weight": _Touch()})


def _own_code(model_type: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        names = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.OwnLM"}
        _edit(files, "config.json", lambda c: c.update(model_type=model_type, auto_map=names))
        files["model/own.py"] = _CODE

    return change


def _own_tokenizer(files: Files) -> None:
    own = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.OwnTokenizer", "own.OwnTokenizer"]}}
    _edit(files, "tokenizer_config.json", lambda c: c.update(own))
    files["model/own.py"] = _CODE


def _template(text: str) -> Callable[[Files], None]:
    def change(files: Files) -> None:
        files["model/chat_template.jinja"] = text.encode()

    return change


def _drop(tensors: dict[str, Any], part: str) -> None:
    for name in [name for name in tensors if part in name]:
        del tensors[name]


def _reshape(tensors: dict[str, Any]) -> None:
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"][:5].contiguous()


def _small(files: Files) -> None:
    """A model that knows fewer tokens than its tokenizer."""
    _edit(files, "config.json", lambda c: c.update(vocab_size=200))
    _weights(files, lambda t: t.update({n: t[n][:200].contiguous() for n in t if "embed" in n or "lm_head" in n}))


CHANGES: dict[str, Callable[[Files], Any]] = {
    "nothing": lambda f: None,
    "no tokenizer": lambda f: [f.pop(n) for n in list(f) if "tokenizer" in n or "template" in n],
    "no tokenizer.json": lambda f: f.pop("model/tokenizer.json"),
    "no tokenizer_config.json": lambda f: f.pop("model/tokenizer_config.json"),
    "no config.json": lambda f: f.pop("model/config.json"),
    "no weights": lambda f: f.pop("model/model.safetensors"),
    "no chat template": lambda f: f.pop("model/chat_template.jinja"),
    "no file": lambda f: f.clear(),
    "template raises": _template("{{ raise_exception('not these') }}"),
    "template of another language": _template("{% for m in messages %}{{ m.role"),
    "template divides by zero": _template("{{ 1 / 0 }}"),
    "template calls nothing": _template("{{ messages.nothing() }}"),
    "template reaches out": _template("{{ ''.__class__.__mro__[1].__subclasses__() }}"),
    "template counts": _template("{% for i in range(10 ** 12) %}{% endfor %}"),
    "template says nothing": _template(""),
    "template drops the answer": _template("{% for m in messages %}{{ m.role }}{% endfor %}"),
    "template shouts": _template("{% for m in messages %}{{ m.content | upper }}<|im_end|>{% endfor %}"),
    "model knows fewer tokens": _small,
    "weights missing": lambda f: _weights(f, lambda t: _drop(t, "mlp")),
    "weights of another shape": lambda f: _weights(f, _reshape),
    "weights of another model": lambda f: _weights(f, lambda t: _drop(t, "")),
    "weights pickled": _pickled,
    "weights too many": lambda f: _weights(f, lambda t: t.update(extra=t["model.norm.weight"].clone())),
    "config of another size": lambda f: _edit(f, "config.json", lambda c: c.update(hidden_size=32)),
    "config of no model": lambda f: _edit(f, "config.json", lambda c: c.update(model_type="nothing")),
    "config of an encoder": lambda f: _edit(f, "config.json", lambda c: c.update(model_type="vit")),
    "config without a type": lambda f: _edit(f, "config.json", lambda c: (c.pop("model_type"), c.pop("architectures"))),
    "config with words": lambda f: _edit(f, "config.json", lambda c: c.update(num_hidden_layers="two")),
    "config with half heads": lambda f: _edit(f, "config.json", lambda c: c.update(num_attention_heads=0)),
    "own code": _own_code("own"),
    "own code beside known": _own_code("qwen3"),
    "own tokenizer": _own_tokenizer,
    "weights are a folder": lambda f: f.update({"model/model.safetensors": None}),
}
#: Where a file can be damaged byte by byte.
DAMAGED = ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "generation_config.json"]


def _cut(content: bytes, at: int) -> bytes:
    return content[: at % len(content)]


def _flip(content: bytes, at: int) -> bytes:
    place = at % min(len(content), 400)  # in the header, where safetensors has one
    return content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :]


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "cut": _cut,
    "flipped": _flip,
    "empty": lambda content, at: b"",
    "noise": lambda content, at: bytes((i * at + i) % 256 for i in range(300)),
    "a list": lambda content, at: b"[1, 2]",
    "an empty mapping": lambda content, at: b"{}",
}


@st.composite
def folders(draw: Callable[..., Any], configs: str) -> Case:
    """`ipvrm fit`, `test` and `rollout` with a model folder."""
    files = model_files(configs)
    if draw(st.booleans()):
        label = draw(st.sampled_from(sorted(CHANGES)))
        CHANGES[label](files)
    else:
        name = draw(st.sampled_from(DAMAGED))
        damage = draw(st.sampled_from(sorted(DAMAGES)))
        content = files[f"model/{name}"] or b""
        files[f"model/{name}"] = DAMAGES[damage](content, draw(st.integers(1, 10_000)))
        label = f"{name} {damage}"
    command = draw(st.sampled_from(["fit", "test", "rollout"]))
    place = "source" if command == "rollout" else "model"
    out = ("--output", "{out}") if command == "rollout" else ("--trainer.default_root_dir", "{out}")
    factory = '{"class_path": "ipvrm_lightning.models.PretrainedLanguageModel", "init_args": {"name": "{here}/model"}}'
    return Case(
        "model folders",
        f"{command}: {label}",
        files,
        (command, "--config", f"{configs}/{command}.yaml", *out, f"--{place}.language_model", factory),
        ("{here}/model", "chat template", "its tokenizer is not the model"),
        valid=label in ("nothing", "weights too many"),
    )
