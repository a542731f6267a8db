"""Who judges the judges: faults planted in ``harness`` and ``references``, each of which the repository's tests must find.

A test can be wrong as a kernel can: it lets a row pass, compares a result with itself, never draws the batch that matters.
``model`` reads the catalogue of such faults, ``checkout`` copies the repository's packages and plants one, ``reporter`` is a
pytest plugin that says which test failed and how, and ``runner`` runs the named tests against the copy.
"""
