"""Worlds that make their own problems, policy and rollouts, so that everything about them is known."""
