"""`python -m jobs`: the same as `stint`, for `ray job submit --working-dir .`, where nothing is installed."""

from jobs.cli import entrypoint

entrypoint()
