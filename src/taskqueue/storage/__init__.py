"""Where tasks live: the port that every engine fills, and the engines."""
