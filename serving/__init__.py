"""The model that the kernels are for, and the engine that forms the batches which break them."""
