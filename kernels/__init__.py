"""Device code: one operation side by side in each language."""
