"""The driver: it plans, hands out shards and keeps books.

Its rooms are listed in ARCHITECTURE.md. Never here: torch, pixels, or anything that a worker imports.
"""
