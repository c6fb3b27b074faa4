"""What all charts look like; the same figures give the same bytes."""

STYLE = {
    "svg.hashsalt": "mergd",  # ids in the file; random without it
    "font.family": "DejaVu Sans",  # the one that matplotlib brings along
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
