"""Removing what a model knows by editing features: choose on SELECT, set on TUNE, measure on TEST once."""
