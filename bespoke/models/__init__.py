"""Networks and factorizations, what they are told and trained for, and the separator that applies them."""
