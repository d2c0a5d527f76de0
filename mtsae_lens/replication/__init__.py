"""The paper repeated: its own settings step by step, and experiments that say why its model did not learn."""
