"""The frame of every command: exit codes, errors, outputs, progress, words of the terminal."""
