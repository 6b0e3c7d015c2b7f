"""The Python client: submit tasks, follow them, wait for their results."""
