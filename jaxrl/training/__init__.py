"""Training loops: pure functions of arrays."""

from jaxrl.training.evaluate import Evaluation, evaluate
from jaxrl.training.off_policy import OffPolicy
from jaxrl.training.offline import Offline
from jaxrl.training.on_policy import OnPolicy
from jaxrl.training.rollout import rollout
from jaxrl.training.trainer import Trainer

__all__ = ["Evaluation", "OffPolicy", "Offline", "OnPolicy", "Trainer", "evaluate", "rollout"]
