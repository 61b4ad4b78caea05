"""What a request asks for, its limits, and the jobs it becomes."""
