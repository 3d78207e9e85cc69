"""The main job: whether a kernel is right, what paging costs in time and saves in memory."""
