"""From records to tables, findings, pictures, a page, comparisons and W&B; imports no torch."""
