"""The engine store: what was built, whether it is intact, and how it is published."""
