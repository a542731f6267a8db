"""Reporters: each takes the one plain dict that ``report.json`` holds, and knows nothing of kernels."""
