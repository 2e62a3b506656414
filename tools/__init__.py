"""Tools for those who work on lit_align; not part of the package."""
