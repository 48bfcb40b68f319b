"""Stable-Baselines3 learns on our environments, knowing nothing but Gymnasium.

In an environment of its own: pip install -e '.[gym]' stable-baselines3
"""

from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from dynamic_graph_fed_rl.faces.gymnasium_face import make


def main(steps: int = 25_000) -> float:
    """Train PPO on CartPole; the mean return of ten episodes that training never met."""
    worlds = make_vec_env(lambda: make("cartpole"), n_envs=8, seed=0)
    model = PPO("MlpPolicy", worlds, n_steps=128, batch_size=256, learning_rate=1e-3, seed=0, device="cpu")
    model.learn(steps)
    held_out = Monitor(make("cartpole", held_out=True))
    returns, _ = evaluate_policy(model, held_out, n_eval_episodes=10, return_episode_rewards=True)
    mean = sum(returns) / len(returns)
    print(f"mean return of {len(returns)} held-out episodes: {mean:.0f}")
    # graphs and continuous actions: the same line, any environment; here one agent's region of a grid, as a vector
    grid = make("power-grid", case="ieee14", agents=3, agent=0, flat=True)
    PPO("MlpPolicy", grid, n_steps=64, batch_size=64, device="cpu").learn(128)
    grid.close()
    return mean


if __name__ == "__main__":
    main()
