"""Sequence activations in, trained SAE out: the loop, its log, its checkpoints, and a runner in the shape of SAELens's."""
