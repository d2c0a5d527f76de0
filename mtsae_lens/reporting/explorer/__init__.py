"""Write the explorer: a page made from a folder of facts, which opens from disk."""
