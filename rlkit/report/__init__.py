"""What is made of results: tables, comparisons and the run report."""
