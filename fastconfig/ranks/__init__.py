"""Several processes: find DistributedDataParallel's parameters, and average their gradients."""
