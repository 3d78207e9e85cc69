"""What is measured and decided: a room for each job, and the rooms that all jobs use."""
