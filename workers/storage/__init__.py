"""Stores and file systems: create if absent, get, list, retries, and what storage libraries raise.

Never here: what the bytes mean.
"""
