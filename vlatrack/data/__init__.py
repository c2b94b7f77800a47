"""Episodes from datasets and simulators, training samples, the token cache, and batches."""
