"""Songs, and the endless stream of training mixes that resemble one."""
