"""Choose which features to edit: the evidence about them, the scores that rank them, and the stability of the choice."""
