"""What tests share; importable as ``helpers`` because pytest's ``pythonpath`` holds tests/."""
