"""Whom to tell, in order, after the head has moved."""
