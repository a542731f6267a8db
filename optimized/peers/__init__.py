"""Adapters from this project's contracts to other libraries, one file a library, each importing its library lazily.

They exist to be compared with: in tests as further subjects, in benchmarks as the figures to beat. An adapter declares
in its `sluicegate` attribute what its library cannot take. What they share is in `packed`.
"""
