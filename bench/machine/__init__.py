"""What a job knows of the machine that it runs on: environment, clocks, bandwidth, GPU, calls."""
