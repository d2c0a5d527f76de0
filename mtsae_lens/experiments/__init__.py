"""Whole experiments: the settings, the run, the record and the report of each stand together."""
