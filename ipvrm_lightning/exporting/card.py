"""The model card of an export: what it is, where it comes from, what was measured, how it is used."""

from __future__ import annotations

from typing import Any

import yaml

from ipvrm_lightning.config_keys import without_secrets
from ipvrm_lightning.models.exported import ExportedConfig, ModelSource

_CITATION = """```bibtex
@inproceedings{gao2026unleashing,
  title     = {Unleashing Implicit Rewards: Prefix-Value Learning for Distribution-Level Optimization},
  author    = {Gao, Shiping and Chen, Hongzhan and Quan, Xiaojun and Wang, Qifan and Huang, Lifu},
  booktitle = {Proceedings of the 43rd International Conference on Machine Learning (ICML)},
  year      = {2026},
  note      = {arXiv:2604.13197}
}
```"""


def model_card(record: ExportedConfig, *, config: dict[str, Any], reports: dict[str, Any] | None) -> str:
    """Markdown with the front matter that the hub reads.

    Args:
        record: what `ipvrm_config.json` holds.
        config: of the run.
        reports: of a test run, None where there is none.
    """
    base = None if record.base is None else record.base.name
    front = {
        **({"base_model": base} if base else {}),
        "library_name": "peft" if record.kind == "adapter" else "transformers",
        "tags": ["ipvrm_lightning", "arXiv:2604.13197"],
    }
    objective = record.objective
    what = "a policy or supervised model"
    if objective is not None:
        numbers = ", ".join(f"{name} {value}" for name, value in objective["init_args"].items())
        what = f"a reward model trained with {objective['class_path'].rpartition('.')[2]} ({numbers})"
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=False).strip(),
        "---",
        "",
        f"# {what[0].upper()}{what[1:]}",
        "",
        f"Made with ipvrm_lightning {record.versions['ipvrm_lightning']} from "
        + (f"`{base}`." if base else "random weights."),
    ]
    if objective is not None:
        lines += ["", *_reading(record, objective["class_path"])]
    lines += ["", "## Results", "", *(_results(reports) if reports else ["None were given when this was exported."])]
    # the folder may be given away
    settings = without_secrets({name: config.get(name) for name in ("seed_everything", "model", "data")})
    lines += ["", "## Data and settings", "", "```yaml", yaml.safe_dump(settings, sort_keys=False).strip(), "```"]
    return "\n".join([*lines, "", "## Citation", "", _CITATION]) + "\n"


def _reading(record: ExportedConfig, objective: str) -> list[str]:
    own = not objective.startswith("ipvrm_lightning.")
    options = " --trust_remote_code" if own else ""  # and its module on the path
    command = ["```", f"ipvrm score --model THIS_FOLDER{options} solutions.jsonl", "```"]
    if record.reference is None:
        return command
    where = "this model with its adapter switched off"
    if isinstance(record.reference, ModelSource):
        where = f"`{record.reference.name}`"
    return [
        "The value of a prefix is beta times the (mean) log-probability ratio of its tokens to the reference, which is"
        f" {where}; `ipvrm_config.json` has beta, and thresholds where they are known.",
        "",
        *command,
    ]


def _results(reports: dict[str, Any]) -> list[str]:
    subsets = reports.get("step_f1", {}).get("subsets", {})
    if not subsets:
        return ["The results hold no step F1."]
    protocols = list(next(iter(subsets.values()))["protocols"])
    lines = ["Step F1 in percent, oracle / cross-fitted threshold.", ""]
    header = ["", *protocols, "*random scores (floor)*", "*longest step (floor)*"]
    lines += [f"| {' | '.join(header)} |", "| --- " * len(header) + "|"]
    for name, found in subsets.items():
        cells = [_both(result["oracle"]["f1"], result["cross_fitted"]["f1"]) for result in found["protocols"].values()]
        cells.append(_both(found["random"]["oracle_mean"], found["random"]["cross_fitted_mean"]))
        cells.append(_both(found["longest_step"]["oracle"]["f1"], found["longest_step"]["cross_fitted"]["f1"]))
        lines.append(f"| {name} ({found['solutions']}) | {' | '.join(cells)} |")
    return lines


def _both(oracle: float | None, cross_fitted: float | None) -> str:
    return " / ".join("-" if share is None else f"{100 * share:.1f}" for share in (oracle, cross_fitted))
