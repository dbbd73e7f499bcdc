"""Training inside the compiler: what it gives, and that it can be relied on."""
