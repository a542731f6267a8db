"""Compiling every Triton kernel of a subject for GPUs that are not there, and judging what the compiler made of it."""
