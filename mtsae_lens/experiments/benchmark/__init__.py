"""Compare every way to unlearn under one protocol: SAEs of several architectures, a dense direction, methods that change weights,
retraining.
"""
