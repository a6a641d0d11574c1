"""Benchmarks: each prints a table and, with --json, one last line. Figures are ratios within one run."""
