"""Federated reinforcement learning for networks that keep changing."""

__version__ = "0.1.0"
