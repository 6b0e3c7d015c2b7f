"""What is wrong with a setting; apart, because every command needs it and few need the tree."""


class SettingsError(Exception):
    """A setting cannot be used; the message names it, its source and the fix."""
