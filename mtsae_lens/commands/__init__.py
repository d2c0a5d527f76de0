"""What the command line does, as functions: one settings class, one call, one record, one report each."""
