"""Episodes of datasets, normalisation statistics, training samples, the cache of image codes, and batches."""
