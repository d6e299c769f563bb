"""The benchmark: a grid of cells goes in, a record per cell comes out, and the report is made from the records."""
