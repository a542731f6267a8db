"""What is under test here: Triton kernels and CPU-side metadata, one file an operator.

``baselines`` does the same work the pre-optimization way.  Nothing is imported here, so that importing one operator
never pays for (or fails because of) another.
"""
