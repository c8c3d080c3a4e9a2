"""Training loops: pure functions of arrays."""

from jaxrl.training.evaluate import Evaluation, evaluate
from jaxrl.training.on_policy import OnPolicy, rollout
from jaxrl.training.trainer import Trainer

__all__ = ["Evaluation", "OnPolicy", "Trainer", "evaluate", "rollout"]
