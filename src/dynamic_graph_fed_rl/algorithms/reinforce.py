"""REINFORCE (Williams 1992) over graphs: what is done is made likelier by the discounted return that followed it."""

from dataclasses import asdict
from typing import ClassVar

from jaxtyping import Array, Float, PyTree

from dynamic_graph_fed_rl.algorithms.base import Experience
from dynamic_graph_fed_rl.algorithms.on_policy import Learner, Lesson, OnPolicy, policy_gradient_loss
from dynamic_graph_fed_rl.algorithms.returns import beside_siblings, masked_standardise, returns_to_go
from dynamic_graph_fed_rl.algorithms.settings import ReinforceSettings
from dynamic_graph_fed_rl.models.policies import GraphActorCritic


class Reinforce(OnPolicy):
    """Hyperparameters; see `ReinforceSettings` for what each one means.

    Without a critic nothing is known of what follows a row whose episode did not end within the round: it does
    not teach. A time limit is an end like any other.
    """

    has_critic: ClassVar[bool] = False

    def prepare(
        self, learner: Learner, memory: PyTree, experience: Experience
    ) -> tuple[Lesson, None, dict[str, Float[Array, ""]]]:
        """Returns to go, standardised over all rows of the round that teach."""
        transition = experience.transition
        returns, known = returns_to_go(transition.reward, transition.terminated | transition.truncated, self.discount)
        lesson = Lesson(
            memory,
            experience.observation,
            experience.action,
            experience.extras,
            masked_standardise(beside_siblings(returns, self.siblings), known),
            known,
            None,
        )
        return lesson, None, {"taught_share": known.mean()}

    def loss(self, network: GraphActorCritic, lesson: Lesson) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        distribution = network.actions(lesson.memory, lesson.observation)
        return policy_gradient_loss(distribution, lesson, self.entropy_weight)


def build(settings: ReinforceSettings, rounds: int) -> Reinforce:
    """REINFORCE from its settings; the learning rate falls to 0 over `rounds`."""
    return Reinforce(decay_rounds=float(rounds), **asdict(settings))
