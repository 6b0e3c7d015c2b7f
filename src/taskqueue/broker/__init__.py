"""What may happen, and when: operations, group commit, waiting, leases, housekeeping."""
