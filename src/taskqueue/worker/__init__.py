"""The Python worker: an app of typed tasks, and the process that runs them."""
