"""Edited models to take away: with the edit attached, or with something like it in the weights."""
