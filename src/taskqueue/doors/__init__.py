"""The doors: one module per protocol; each translates between its protocol and the operations."""
