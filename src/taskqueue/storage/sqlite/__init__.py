"""The embedded engine: one SQLite file, one writer thread, readers apart."""
