"""A checkpoint's way (admission, folding, publishing, retention), the clock, the threads and the user's commands."""
