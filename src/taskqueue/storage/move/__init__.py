"""The move of a data folder's tasks to a PostgreSQL database."""
