"""Run the commands as functions: each has one settings class, one call, one record and one report."""
