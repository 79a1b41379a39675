"""People's own tools, apart from the project's environment: what they write is scored, what Stint writes they read."""
