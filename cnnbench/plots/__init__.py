"""Drawing of pictures: one style and one set of helpers for the reports and for `cnnbench explain`."""
