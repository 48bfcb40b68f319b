"""A loop of one's own: two regions of the 14-bus grid learn with GraphSAC and average what they have learned.

    python examples/own_loop.py

Everything that `dgfrl train` does in one compiled call is done step by step here, with plain Python in between. That
is slow (one world, one decision at a time) but any line of it can be changed. A few episodes show that it runs, not
what can be learned.
"""

import time

from dynamic_graph_fed_rl import DynamicGraphEnv, FederatedActorCritic, GraphTransition
from dynamic_graph_fed_rl.algorithms import GraphSAC

EPISODES = 5
WARM_UP = 48  # decisions before the first gradient step


def main() -> None:
    env = DynamicGraphEnv("power_grid", num_agents=2, case="ieee14", edge_failure_rate=0.002, training_decisions=24)
    federation = FederatedActorCritic(num_agents=2, communication="server", aggregation_interval=12)
    # a set-point shows within a few decisions; more than that only adds the weather's noise
    choices = {
        "discount": 0.8,
        "learning_rate": 1e-3,
        "initial_std": 0.1,
        "width": 16,
        "batch_size": 64,
        "memory": "none",
    }
    agents = [GraphSAC.for_environment(env, buffer_size=2000, **choices) for _ in range(federation.num_agents)]
    begun, decisions, sent = time.perf_counter(), 0, 0.0

    for episode in range(EPISODES):
        state, done, total, changes = env.reset(), False, 0.0, 0
        while not done:
            actions = {i: agent.select_action(state.get_subgraph(i)) for i, agent in enumerate(agents)}
            after, rewards, done, info = env.step(actions)
            for i, agent in enumerate(agents):
                seen = state.get_subgraph(i), after.get_subgraph(i)
                agent.buffer.add(GraphTransition(seen[0], actions[i], rewards[i], seen[1]))
                if decisions >= WARM_UP:
                    agent.update()
            decisions += 1
            if decisions % federation.aggregation_interval == 0:
                sent += federation.aggregate_parameters(agents)["bytes"]
            state, total, changes = after, total + sum(rewards.values()), changes + info["topology_changed"]
        print(f"episode {episode}: reward {total:.2f}, {changes} topology changes, {sent / 1e6:.2f} MB sent so far")

    print(f"{decisions} decisions in {time.perf_counter() - begun:.0f} s, most of it compilation")


if __name__ == "__main__":
    main()
