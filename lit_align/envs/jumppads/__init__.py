"""The island with three jumppads: a real 3D engine, a map of our own."""
