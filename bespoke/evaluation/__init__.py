"""How good a separation is: metrics, other methods to compare it with, the benchmark, the pages."""
