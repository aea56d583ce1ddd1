"""What a run is told from outside, what it tells outside, and what it does when it hangs."""
