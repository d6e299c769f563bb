"""Tables, findings, pictures, the HTML page, comparisons and W&B runs, all made from records; imports no torch."""
