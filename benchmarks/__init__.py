"""What the operators cost: `python -m benchmarks` on a machine with an NVIDIA GPU.

Every figure is taken next to the others in one run: ours, the pre-optimization way (`optimized.baselines`), other
libraries where they are installed, and the bandwidth that a plain copy reaches. Ratios within a run are what counts.
"""
