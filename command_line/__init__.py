"""The command `f3`."""
