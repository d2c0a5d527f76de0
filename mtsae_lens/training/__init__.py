"""Train SAEs on sequence activations: the training loop, its log, its checkpoints, and a runner with SAELens's interface."""
