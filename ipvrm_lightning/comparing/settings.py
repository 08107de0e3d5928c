"""Settings of runs by dotted key: which tell the runs apart, and how they are called."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ipvrm_lightning.config_keys import plain_name

#: By dotted key, as a run's `config.yaml` spells it. What a config lacks or has as null is None alike.
Settings = Mapping[str, Any]

OBJECTIVE = "model.init_args.objective.class_path"
_MODEL = "model.class_path"
#: What of the trainer decides how much is learned; the rest says where and how a run is carried out.
_TRAINER = {
    *("max_epochs", "max_steps", "max_time", "overfit_batches", "limit_train_batches"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm", "precision"),
}
#: Places of files that a run writes or keeps, and how it is carried out: never what runs are told apart by.
_PLACES = {"ckpt_path", "cache_dir", "root", "num_workers", "workers"}
#: Arguments of the package's classes that divide the work, and move results by rounding alone.
_DIVISIONS = ("max_tokens", "chunk_size", "eval_batch_size", "gradient_checkpointing", "collecting.batch_size")
#: What differs from run to run of one setting: seeds, and the reward model that a policy is trained with.
_REPEATS = {"seed", "seed_everything", "checkpoint"}


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Keys by the fewest last parts that tell them apart.

    Args:
        keys: dotted.
    """
    parts = {key: plain_name(key).split(".") for key in keys}

    def shortest(key: str) -> str:
        for count in range(1, len(parts[key])):
            if sum(other[-count:] == parts[key][-count:] for other in parts.values()) == 1:
                return ".".join(parts[key][-count:])
        return plain_name(key)

    return {key: shortest(key) for key in keys}


def named_setting(name: str, runs: Sequence[Settings]) -> str:
    """The key that a user means.

    Args:
        name: the key, or its last parts; `init_args` and `class_path` may be left out.
        runs: settings of each.

    Raises:
        ValueError: no run has such a key, or several keys end so.
    """
    keys = list(dict.fromkeys(key for run in runs for key in run))
    wanted = plain_name(name).split(".")
    matching = [key for key in keys if plain_name(key).split(".")[-len(wanted) :] == wanted]
    exact = [key for key in matching if name in (key, plain_name(key))]
    found = exact or matching
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(f"--by {name}: could be {', '.join(found)}; give one of them")
    differing = ", ".join(plain_name(key) for key in keys if _is_known(key) and _count(runs, [key]) > 1)
    raise ValueError(f"--by {name}: no run has such a setting; they differ in {differing or 'none'}")


def telling_settings(runs: Sequence[Settings]) -> list[str]:
    """The fewest settings that tell apart all runs whose settings differ, the objective first.

    A setting that goes with others (rollouts in pairs, with an objective of pairs) tells nothing new and is left out.

    Args:
        runs: settings of each.
    """
    chosen = [OBJECTIVE] if any(run.get(OBJECTIVE) for run in runs) else []
    objective = OBJECTIVE.removesuffix("class_path")
    differing = [key for key in _differing(runs) if not _repeats(key)]
    for key in sorted(differing, key=lambda key: (not key.endswith("class_path"), not key.startswith(objective))):
        if _count(runs, [*chosen, key]) > _count(runs, chosen):
            chosen.append(key)
    return chosen or [_MODEL]


def differing_within(groups: Iterable[Sequence[Settings]]) -> list[str]:
    """Plain names of what differs between runs of one group.

    Args:
        groups: settings of the runs of each.
    """
    return list(dict.fromkeys(plain_name(key) for runs in groups for key in _differing(runs)))


def differing_as_well(runs: Sequence[Settings], chosen: Sequence[str]) -> list[str]:
    """Plain names of what differs between runs beside chosen settings; arguments of classes that differ are left out.

    Args:
        runs: settings of each.
        chosen: keys.
    """
    found = []
    for key in _differing(runs):
        parts = key.split(".init_args.")
        classes = [".init_args.".join(parts[:count]) + ".class_path" for count in range(1, len(parts))]
        if not _repeats(key) and not any(_count(runs, [one]) > 1 for one in classes):
            whole = _whole(key, runs)
            if not any(f"{one}.".startswith(f"{whole}.") for one in chosen):
                found.append(plain_name(whole))
    return list(dict.fromkeys(found))


def _whole(key: str, runs: Sequence[Settings]) -> str:
    """The highest part of the config above a key that some run lacks altogether, else the key."""
    whole = key
    while "." in key:
        key = key.rpartition(".")[0]
        if all(any(name.startswith(f"{key}.") for name in run) for run in runs):
            break
        whole = key
    return whole


def _differing(runs: Sequence[Settings]) -> list[str]:
    keys = dict.fromkeys(key for run in runs for key in run)
    return [key for key in keys if _is_known(key) and _count(runs, [key]) > 1 and not _divides_work(key, runs)]


def _divides_work(key: str, runs: Sequence[Settings]) -> bool:
    """Whether a key is one that divides the work, in classes of the package: in others it may mean anything."""
    owner, _, argument = key.rpartition(".init_args.")
    classes = {str(run.get(f"{owner}.class_path")) for run in runs if key in run}
    return argument.endswith(_DIVISIONS) and all(one.startswith("ipvrm_lightning.") for one in classes)


def _is_known(key: str) -> bool:
    """Whether a key says what a run computes."""
    part, _, rest = key.partition(".")
    if part == "trainer":
        return rest in _TRAINER
    return part in ("model", "data", "test", "seed_everything", "trained", "run") and _last(key) not in _PLACES


def _repeats(key: str) -> bool:
    return _last(key) in _REPEATS or _last(key).endswith("_seed")


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _count(runs: Sequence[Settings], keys: Sequence[str]) -> int:
    return len({tuple(run.get(key) for key in keys) for run in runs})
