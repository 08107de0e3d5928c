"""Rollouts: sampled responses to prompts."""
