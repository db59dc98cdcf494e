"""The report: everything that is known of how wrong the answers are, as one HTML file."""
