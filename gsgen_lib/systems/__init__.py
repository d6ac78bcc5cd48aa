"""One file per system; each reads top to bottom like its notebook."""
