"""The files and the database, and the nouns."""
