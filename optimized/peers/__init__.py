"""Adapters from this project's contracts to other libraries, each importing its library lazily.

They exist to be compared with: in tests as further subjects, in benchmarks as the figures to beat. An adapter declares
in its `sluicegate` attribute what its library cannot take. What those to delta rules share is in `packed`; those to mixtures
of experts, in `experts` and `prepared`.
"""
