"""Inject faults: kills, full disks, damaged files, two processes on one folder, and invalid input.

`python -m faults` with `tests/` on the path (`make faults`) runs everything, `python -m faults --quick` a small part. Every trial is
drawn from the seed, its family and its number alone, so that a failure can be repeated: `--only FAMILY --trial NUMBER`.
"""
