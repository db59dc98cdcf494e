"""What others measured and published, as evidence: rows, and what each of them was a run of."""
