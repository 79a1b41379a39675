"""The machine: cores, memory, the CPU's instruction sets, child processes, notice to leave.

Never here: models and images.
"""
