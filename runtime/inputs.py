"""Files that a user names: read whole, up to a limit."""

from clipskip.engines.files import read_named as read

__all__ = ["read"]
