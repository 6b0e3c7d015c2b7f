"""taskqueue in other frameworks, each in a module of its own."""
