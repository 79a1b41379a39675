"""The model as shipped: manifest, files, accuracy report, gate, profiles of nodes.

Never here: how its artifacts are made or run.
"""
