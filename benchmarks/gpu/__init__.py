"""``make gpu``: everything that a machine with a CUDA GPU is asked, in one run of nine minutes."""
