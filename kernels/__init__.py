"""Device code, a folder for each language; the same operations have the same names."""
