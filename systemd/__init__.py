"""The units, and an example configuration that a test loads."""
