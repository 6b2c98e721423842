"""Networks, their input features and losses, factorizations, and the separator."""
