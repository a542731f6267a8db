"""What must hold, one file an operator. ``sluicegate verify`` runs these through pytest; see `harness.pytest_plugin`."""
