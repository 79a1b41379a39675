"""Run an artifact, and know which one is best on which CPU. Every engine has the interface of `base`.

Never here: how artifacts are made; workers load them without the libraries that quantize.
"""
