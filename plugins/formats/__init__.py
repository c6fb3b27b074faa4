"""What a checkpoint looks like on disk: one interface, one sibling for each kind."""
