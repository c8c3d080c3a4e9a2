"""Data that agents cannot learn from are refused before a run begins."""

from __future__ import annotations

import re

import jax
import pytest
from test_offline import KEY, PENDULUM, SMALL, dataset, td3

from jaxrl import BC, Chunks, NormalizeObs, Offline, OffPolicy, ReBRAC, UsageError, run
from jaxrl.data import Mixed, WeightedDataset, Windows
from jaxrl.nn.critics import Critic
from jaxrl.nn.policies import Deterministic
from jaxrl.run.runner import check_data
from jaxrl.run.session import Session


def rebrac():
    small = {"hidden_dims": (8,)}
    return ReBRAC(policy=Deterministic(**small), critic=Critic(**small))


CHUNKS = Chunks(BC(policy=Deterministic(hidden_dims=(8,))), 4)
SPLIT = dataset().split(0.2)
WHOLE = "; give it the whole dataset, without split() or --validation"
UNLEARNABLE = {
    "a split": (Offline(td3(), PENDULUM), SPLIT, "TD3 has no validation loss" + WHOLE),
    "a split, wrapped": (
        Offline(NormalizeObs(td3()), PENDULUM),
        SPLIT,
        "TD3 has no validation loss" + WHOLE,
    ),
    "a split online": (
        OffPolicy(BC(policy=Deterministic(hidden_dims=(8,))), PENDULUM, sampler=Mixed()),
        SPLIT,
        "data is a Split, and OffPolicy computes no validation loss" + WHOLE,
    ),
    "no next action": (
        Offline(rebrac(), PENDULUM),
        dataset(),
        "ReBRAC reads 'next_action' from its batches, and UniformDataset gives none; "
        "give dataset.with_next_action()",
    ),
    "no next action online": (
        OffPolicy(rebrac(), PENDULUM, sampler=Mixed()),
        dataset(),
        "ReBRAC reads 'next_action' from its batches, and Mixed gives none; "
        "give dataset.with_next_action()",
    ),
    "no windows": (
        Offline(CHUNKS, PENDULUM),
        dataset(),
        "BC reads 'valid' from its batches, and UniformDataset gives none",
    ),
    "no windows online": (
        OffPolicy(CHUNKS, PENDULUM),
        (),
        "batches need 'valid', which a replay buffer does not hold",
    ),
    "other windows": (
        Offline(CHUNKS, PENDULUM, sampler=Windows(3, 1)),
        dataset(),
        "the agent needs sampler=Windows(4, 1)",
    ),
    "no weights": (
        Offline(td3(), PENDULUM, sampler=WeightedDataset()),
        dataset(),
        "WeightedDataset needs a dataset with weights",
    ),
}


@pytest.mark.parametrize(("trainer", "data", "words"), UNLEARNABLE.values(), ids=UNLEARNABLE)
def test_what_an_agent_cannot_learn_from_is_refused_before_anything_is_written(
    trainer, data, words, tmp_path, monkeypatch
):
    monkeypatch.setattr(Session, "train", lambda *_: pytest.fail("training began"))
    with pytest.raises(UsageError, match=re.escape(words)) as error:
        run(trainer, 20_000, data=data, run_dir=tmp_path / "run", **SMALL)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()
    with pytest.raises(UsageError, match=re.escape(words)):
        jax.eval_shape(lambda data: trainer.train(KEY, 20_000, data), data)


def test_a_split_is_for_runs_that_have_an_offline_phase():
    agent = BC(policy=Deterministic(hidden_dims=(8,)))
    trainers = [Offline(agent, PENDULUM), OffPolicy(agent, PENDULUM, sampler=Mixed())]
    check_data(trainers, SPLIT)
    with pytest.raises(UsageError, match="OffPolicy computes no validation loss"):
        check_data(trainers[1:], SPLIT)
