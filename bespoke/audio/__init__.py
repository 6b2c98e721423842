"""Audio files and signal processing."""
