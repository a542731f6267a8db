"""The parts of a layer, as functions of the packed tokens."""
