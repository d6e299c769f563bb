"""A whole benchmark: the plan of a grid of networks, data sets and seeds, its cell-by-cell run, and its resumption."""
