"""What the gate catches: planted faults of kernels, engine and weights, each put through it; and right runs, which it must let pass."""
