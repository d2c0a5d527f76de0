"""Run whole experiments. The settings, the run, the record and the report of one experiment stand together."""
