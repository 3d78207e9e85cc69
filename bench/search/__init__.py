"""Drawing examples, making a failure smaller, and the child processes that run them."""
