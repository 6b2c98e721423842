"""Signals: from and to files, and what is computed of them."""
