"""What `make` runs besides the command: each file is a script of its own."""
