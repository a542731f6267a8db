"""The tests of Sluicegate itself. A package, so that tests can share helpers under a name that nothing else has."""
