"""Songs, and streams of training mixes that resemble one."""
