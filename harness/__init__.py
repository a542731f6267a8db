"""How Sluicegate tests: operators, hostile memory, budgets, relations, guards, isolation, reports, the command line.

Nothing here imports an implementation: subjects reach the harness by name, through entry points or ``--subject``.
"""

__version__ = "0.1.0"
