"""A run started from elsewhere: Ray's job server, Kubernetes, a night's RayJob.

Never here: what the run itself does; it is the same command as on a laptop.
"""
