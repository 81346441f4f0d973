"""Several processes: whose gradients are replicas, and how these are averaged on the way to an update."""
