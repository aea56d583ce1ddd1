"""The error of a merge."""

from configs.loader import UserError


class MergeError(UserError):
    """Models cannot be merged, or not into this place; the message names both sides."""
