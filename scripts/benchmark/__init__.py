"""The bench: the same work on a plain directory and on a mount, by turns, and what the daemon pays for it."""
