"""The `tq` command: one module per group of commands; data on stdout, everything else on stderr."""
