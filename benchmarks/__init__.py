"""Whole commands, measured and printed; nothing here is asserted. README.md says how to read the figures."""
