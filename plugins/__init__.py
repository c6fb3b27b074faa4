"""Everything replaceable.

What a checkpoint looks like (`formats/`), how to fold and read out (`rules/`), where to look (`sources/`), what may
pass (`gates/`), whom to tell (`hooks/`).
"""
