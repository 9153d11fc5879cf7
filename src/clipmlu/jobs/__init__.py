"""Bulk jobs: many images are cut into shards, each of which becomes one output file; a job resumes where it ended."""
