"""How the gate is proved: faults planted one at a time, each of which some property must find (design section 6).

``model`` reads the catalogue. ``mutation`` generates more: ``mutators`` find places in a ``source``, ``reach`` says which
subject judges them, and ``equivalents`` which of them are proven to be no faults. ``injection`` copies a package with one
fault in it, ``trial`` runs an operator's properties against that copy in a process of its own, in the order of
``schedule``; ``runner`` does so for many faults, and ``matrix`` says what came of it. ``judging`` plants faults in the judges.
"""
