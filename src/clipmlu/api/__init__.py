"""The public functions: one for each command, with the words of the command line as keywords."""
