"""Side-by-side measurements that anyone can run; results are kept with their raw data."""
