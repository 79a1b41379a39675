"""The actor: it holds the model and does everything that touches a pixel.

Its rooms are listed in ARCHITECTURE.md. Never here: Ray, or anything of `jobs`.
"""
