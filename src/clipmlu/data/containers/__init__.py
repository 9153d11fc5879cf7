"""Images inside files that hold many: tar archives, Parquet and Arrow files."""
