"""Measure what a change did: losses and recall, calibrated loss, gates, generations, distance to the reference, intervals."""
