from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ipvrm_lightning.data import TrajectoryDataset
from ipvrm_lightning.models.logprobs import response_scores
from ipvrm_lightning.worlds.arithmetic import ArithmeticDataModule, ArithmeticPolicy, ArithmeticWorld
from ipvrm_lightning.worlds.arithmetic.tokenizer import vocabulary


def options(world: ArithmeticWorld) -> dict:
    return {"size": world.size, "seed": world.seed, "root": world.root, "overrides": world.overrides}


@pytest.fixture(scope="module")
def policy(micro_world: ArithmeticWorld) -> ArithmeticPolicy:
    return ArithmeticPolicy(**options(micro_world))


@pytest.fixture(scope="module")
def data(micro_world: ArithmeticWorld, policy: ArithmeticPolicy) -> ArithmeticDataModule:
    module = ArithmeticDataModule(**options(micro_world), batch_size=8, max_tokens=512)
    module.with_tokenizer(policy.build_tokenizer())
    module.prepare_data()
    module.setup()
    return module


def test_training_and_validation_sets(data: ArithmeticDataModule) -> None:
    assert (len(data.train_set), len(data.val_set)) == (24 * 4, 8 * 4)
    assert not set(data.train_set.groups) & set(data.val_set.groups)
    counts = [window.counts["sequences"] for window in data.train_dataloader()]
    assert sum(counts) == 96


def test_test_sets_go_with_their_loaders_and_names(data: ArithmeticDataModule) -> None:
    assert data.test_names == ["format0", "format1", "format2", "best_of_8", "truth"]
    loaders = data.test_dataloader()
    assert len(loaders) == len(data.test_sets) == len(data.predict_dataloader()) == 5
    for name, dataset, loader in zip(data.test_names, data.test_sets, loaders, strict=True):
        seen = [row for batch in loader for row in batch.index.tolist()]
        assert sorted(seen) == list(range(len(dataset)))
        assert all(dataset.metadata(row)["subset"] == name for row in seen)
        assert (dataset.step_labels is not None) == name.startswith("format")
    assert len(data.test_sets[3]) == 6 * 8
    assert {data.test_sets[3].metadata(row)["prompt"] for row in range(48)} == set(data.test_sets[3].groups)
    assert not set(data.test_sets[0].groups) & set(data.train_set.groups)


def test_a_problem_is_the_same_in_every_format(data: ArithmeticDataModule) -> None:
    known = [[dataset.metadata(row) for row in range(len(dataset))] for dataset in data.test_sets[:3]]
    for one, *others in zip(*known, strict=True):
        assert {other["shared_problem"] for other in others} == {one["shared_problem"]}
        assert len({one["problem"], *(other["problem"] for other in others)}) == 3
    assert len({one["shared_problem"] for one in known[0]}) == len({one["problem"] for one in known[0]})


def test_a_policy_that_solved_nothing_is_named(
    micro_world: ArithmeticWorld, data: ArithmeticDataModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "test_sets", [*data.test_sets[:4], TrajectoryDataset([])])
    with pytest.raises(ValueError, match=rf"{micro_world.folder}: no solution .* truth is empty: fine-tune"):
        data.test_dataloader()


def test_each_response_token_lies_in_the_step_its_text_is_in(data: ArithmeticDataModule, policy) -> None:
    tokenizer = policy.build_tokenizer()
    for number in (0, 1, 2, 4):
        dataset = data.test_sets[number]
        for row in range(len(dataset)):
            example, steps = dataset[row], dataset.metadata(row)["steps"]
            response = example.input_ids[example.response_start :]
            assert example.step_ids[-1] == -1
            assert response[-1] == tokenizer.eos_token_id
            for index, text in enumerate(steps):
                ids = [token for token, step in zip(response, example.step_ids, strict=True) if step == index]
                assert tokenizer.decode(ids) == text + ("\n" if index + 1 < len(steps) else "")
            assert dataset.metadata(row)["step_lengths"] == [len(text) for text in steps]


def test_true_values_stand_at_the_token_that_ends_a_step(data: ArithmeticDataModule, policy) -> None:
    line_break = policy.build_tokenizer().convert_tokens_to_ids("\n")
    dataset = data.test_sets[4]
    for row in range(len(dataset)):
        example = dataset[row]
        known = [token for token, value in enumerate(example.true_values) if value == value]
        response = example.input_ids[example.response_start :]
        assert known == [position for position, token in enumerate(response) if token == line_break]


def test_the_policy_gives_its_own_rollouts_a_high_probability(data: ArithmeticDataModule, policy) -> None:
    model = policy.build_model().eval()
    batch = next(iter(data.val_dataloader()[0]))
    with torch.no_grad():
        scores = response_scores(model, batch)
    mean = scores.log_probs.sum() / batch.count("tokens")
    assert mean > -torch.tensor(float(len(vocabulary()))).log() / 2
    assert model.config.vocab_size == len(vocabulary())


def test_pairs(micro_world: ArithmeticWorld, policy: ArithmeticPolicy) -> None:
    module = ArithmeticDataModule(**options(micro_world), pairwise=True, batch_size=4)
    module.with_tokenizer(policy.build_tokenizer()).setup()
    outcomes, groups = module.train_set.outcomes, module.train_set.group_ids
    for chosen, rejected in module.train_pairs:
        assert (outcomes[chosen], outcomes[rejected]) == (1, 0)
        assert groups[chosen] == groups[rejected]


def test_a_policy_of_another_world_is_refused(micro_world: ArithmeticWorld) -> None:
    module = ArithmeticDataModule(**options(micro_world))
    other = ArithmeticPolicy(size="small", seed=8, root=micro_world.root)
    module.trainer = SimpleNamespace(lightning_module=SimpleNamespace(language_model=other))
    with pytest.raises(ValueError, match=r"the policy is of .*small-seed8") as caught:
        module.setup()
    assert "\n" not in str(caught.value)


def test_an_absent_world_is_an_error_in_setup(tmp_path) -> None:
    with pytest.raises(ValueError, match="there is no arithmetic world at"):
        ArithmeticDataModule(root=str(tmp_path)).setup()
