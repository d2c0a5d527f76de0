"""What a feature does: in which tokens it fires, and which time scale drives it."""
