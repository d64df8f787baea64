"""What the trials of a sweep say together: standings, comparisons, tables, plots, the page."""
