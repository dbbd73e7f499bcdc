"""The planner by itself: against brute force, against other strategies, and its time."""
