"""Numbered SQL files, each one step of the schema; their order is that of their names."""
