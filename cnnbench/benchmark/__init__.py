"""From a plan to records: the grid is resolved, run cell by cell, and resumed."""
