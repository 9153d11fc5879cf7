"""Engines: they pass the tasks of a job to workers, in this process, in processes of this machine, or on a Ray cluster."""
