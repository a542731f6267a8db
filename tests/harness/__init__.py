"""Tests of the harness: strategies shrink, budgets separate, guards fire, memory is watched, the command line behaves."""
