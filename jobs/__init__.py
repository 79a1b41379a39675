"""The driver: it plans, hands out shards and keeps books.

Its rooms are listed in ARCHITECTURE.md. Never here: anything that a worker imports, and torch or pixels, but for the
demo and for pictures that a person looks at.
"""
