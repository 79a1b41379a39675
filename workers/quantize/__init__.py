"""Make INT8 artifacts of a float network. ARCHITECTURE.md says why the recipe is as it is.

Never here: whether they are good enough, which is the gate's to say.
"""
