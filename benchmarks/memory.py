"""What each memory is worth where nothing can be done without one: PPO on `recall`, by memory and delay.

Prints a table of the share of questions answered rightly on held-out seeds, interquartile mean over training seeds
with a bootstrap interval, and writes `results/memory.json`. With the flag a round is one episode of every world, so
that there are as many answers to learn from whatever the delay. A guess is right in half of the cases.
"""

from dataclasses import dataclass
from typing import Any, Literal

import tyro
from measure import Claim, Stopwatch, print_claims, use_one_thread, write_results

BAR = 0.95
"""What the default memory has to reach at the longest delay."""
EPISODES = 64
"""Held-out episodes that each training seed is judged by."""


@dataclass(frozen=True)
class Options:
    """What to train; the defaults are the published table."""

    memories: tuple[str, ...] = ("none", "leaky", "gru", "tgn", "multi-scale")
    """Memories by name."""
    delays: tuple[int, ...] = (50, 10, 1)
    """Decisions between what is seen and the question about it."""
    tasks: tuple[Literal["flag", "average"], ...] = ("flag",)
    """What is asked."""
    seeds: int = 5
    """Training runs of each, side by side."""
    rounds: int = 60
    """Rounds of learning."""
    out: str = "memory"
    """Results are written to results/OUT.json."""


def shares_right(task: str, delay: int, memory: str, options: Options) -> tuple[list[float], dict[str, Any]]:
    """Share of questions answered rightly by the policy of each training seed, and what it took."""
    import jax
    import jax.numpy as jnp

    from dynamic_graph_fed_rl.evaluation.evaluate import evaluation_keys, run_episodes
    from dynamic_graph_fed_rl.experiment import build, default_experiment

    # where a question is always open, a bonus meant for rare ones would drown the reward
    fields = {"decisions_per_round": delay + 1} if task == "flag" else {"entropy_weight": 0.01}
    fields |= {"task": task, "delay": delay, "memory": memory, "rounds": options.rounds, "federation": "independent"}
    experiment = default_experiment("recall", **fields)
    built = build(experiment)
    trainer = built.trainer

    @jax.jit
    def train(keys: jax.Array) -> Any:
        step = lambda training, _: (jax.vmap(lambda one: trainer.run_round(one)[0])(training), None)  # noqa: E731
        return jax.lax.scan(step, jax.vmap(trainer.init)(keys), None, experiment.rounds)[0]

    keys = jax.vmap(jax.random.key)(jnp.arange(options.seeds))
    with Stopwatch() as compilation:
        compiled = train.lower(keys).compile()
    with Stopwatch() as learning:
        trained = jax.block_until_ready(compiled(keys))
    environment = built.domain.scenarios["standard"]
    shares = []
    for seed in range(options.seeds):
        policy = built.policy(jax.tree.map(lambda leaf, seed=seed: leaf[seed], trained))
        episodes = run_episodes(policy, environment, built.domain.owners, evaluation_keys(0, EPISODES))
        shares.append(float(episodes["share_right"].mean()))
    parameters = jax.tree.leaves(trained.learners[0].network)
    return shares, {
        "shares": shares,
        "parameters": sum(leaf.size for leaf in parameters) // options.seeds,
        "decisions": experiment.rounds * experiment.decisions_per_round * experiment.worlds,
        "learning_cpu_seconds_per_seed": learning.cpu_seconds / options.seeds,
        "compilation_cpu_seconds": compilation.cpu_seconds,
    }


def main(options: Options) -> None:
    use_one_thread()
    from dynamic_graph_fed_rl.evaluation.statistics import summarise

    claims, path = [], None
    for task in options.tasks:
        for delay in options.delays:
            for memory in options.memories:
                shares, details = shares_right(task, delay, memory, options)
                summary = summarise(shares)
                decided = (task, memory, delay) == ("flag", "leaky", max(options.delays))
                claims.append(
                    Claim(
                        claim=f"{task}, k = {delay}, {memory}",
                        value=summary["iqm"],
                        low=summary["low"],
                        high=summary["high"],
                        unit="share right",
                        interval="bootstrap over training seeds, 95 %",
                        bar=BAR if decided else None,
                        seeds=tuple(range(options.seeds)),
                        details=details,
                    )
                )
                print(f"{claims[-1].claim}: {summary['iqm']:.3f} {shares}", flush=True)
                # after each, so that a run that is cut short keeps what it has
                path = write_results(options.out, claims)
    print_claims("Recall: questions answered rightly", claims)
    print(f"written: {path}")


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
