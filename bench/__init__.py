"""What is measured and decided: request streams, memory arithmetic, the main job and the gate."""
