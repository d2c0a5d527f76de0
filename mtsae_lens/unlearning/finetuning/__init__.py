"""Make a model forget by changing its weights: losses, training with snapshots, and copies of a model."""
