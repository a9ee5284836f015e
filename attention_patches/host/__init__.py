"""The only folder that imports the host."""
