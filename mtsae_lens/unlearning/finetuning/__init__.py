"""Forgetting by changing weights: losses, training with snapshots, copies of a model."""
