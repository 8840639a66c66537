"""What several tests, or the benchmarks, need. Nothing here is a test."""
