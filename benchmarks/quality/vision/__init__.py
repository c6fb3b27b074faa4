"""Vision: letters of many scripts, digits, shapes and textures, and a small residual encoder."""
