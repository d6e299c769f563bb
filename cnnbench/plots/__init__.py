"""How pictures are drawn: one style and one set of helpers for reports and `explain`."""
